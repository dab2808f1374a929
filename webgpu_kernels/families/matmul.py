"""`linear` and `embedding`: everything that reads a weight matrix [N, K] row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from webgpu_kernels import operands
from webgpu_kernels.grid import Tile, threads, tiled
from webgpu_kernels.registry import (
    MATRIX_FEATURE,
    Binding,
    Case,
    Expression,
    Groups,
    Kernel,
    Numbers,
    Options,
    Variant,
    register,
)
from webgpu_kernels.weights import LOW_BIT, dense, random_weights, weight_bindings

Arrays = dict[str, np.ndarray]

TILE = Tile(rows=8, columns=8)
F32_STAGED = {
    "operand": "f32",
    "tile_rows": 128,
    "tile_columns": 128,
    "threads": 256,
    "depth": 16,
    "unroll": 16,
}
F32_TALL = {**F32_STAGED, "threads": 128}  # 16 by 8 sums a thread: faster where tiles fill the GPU many times over
F16 = {**F32_STAGED, "operand": "f16", "depth": 32, "unroll": 1}
INT8_ROWS = {"operand": "int8", "tile_rows": operands.TILE, "tile_columns": 128, "depth": 64}
MATRIX_F16 = {
    "operand": "f16",
    "tile_rows": 128,
    "tile_columns": 128,
    "sub_rows": 64,
    "sub_columns": 64,
    "depth": 32,
    "groups": False,
}
MATRIX_INT8 = {**MATRIX_F16, "operand": "int8", "depth": 64}
MATRIX_INT8_NARROW = {**MATRIX_INT8, "tile_columns": 64, "sub_columns": 32}
MATRIX_INT8_GROUPS = {**MATRIX_INT8, "groups": True, "sub_columns": 32}
# none: x·Wᵀ + bias; residual and gate_residual add it, times one row, to what was there; swiglu takes W of 2N rows, the
# gates' before the ups'.
EPILOGUES = ("none", "swiglu", "residual", "gate_residual")
LINEAR_WEIGHTS = ("f16", "f32", "binary", "ternary", "int4", "int8")


def _rows_of_w(options: Options) -> Expression:
    """Rows of W: swiglu takes two for a column of y."""
    return ["mul", 2, "N"] if options["epilogue"] == "swiglu" else "N"


def _tile_groups(options: Options) -> Groups:
    return TILE.groups(_rows_of_w(options), ["ceil_div", "rows", TILE.rows])


def _tiled(options: Options) -> Groups:
    return tiled(_rows_of_w(options), "rows")(options)


def _limits(context: dict[str, Any]) -> dict[str, int]:
    """What a variant's tile needs beyond core WebGPU."""
    size = {"f32": 4, "f16": 2, "int8": 1}[context["operand"]]
    lines = context["tile_rows"] + context["tile_columns"]
    needed = lines * context["depth"] * size
    if "sub_rows" in context:
        parts = context["tile_rows"] * context["tile_columns"] // (context["sub_rows"] * context["sub_columns"])
        needed = max(needed + 16 * lines, parts * 64 * context["sub_columns"])
        needed += 4 * context["tile_columns"] if size == 1 and not context["groups"] else 0
    return {"maxComputeWorkgroupStorageSize": needed} if needed > 16_384 else {}


def _linear_elements(options: Options) -> dict[str, str]:
    if not options["aligned"]:
        return {}
    return {"x": "vec4f", **{"f16": {"weight": "vec2u"}, "f32": {"weight": "vec4f"}}.get(options["weights"], {})}


def _converted_elements(options: Options) -> dict[str, str]:
    """Of variants that take converted rows of x."""
    codes = {"int4": {"codes": "vec2u"}, "int8": {"codes": "vec4u"}, "f16": {"weight": "vec4u"}}
    return {"x": "vec4u", "x_scales": "vec2f", **codes.get(options["weights"], {})}


def _tile_elements(options: Options) -> dict[str, str]:
    """Of int8_rows: binary and ternary codes of 64 elements of K at once."""
    codes = {"binary": "vec2u", "ternary": "vec4u"}
    known = _converted_elements(options) | {"x_scales": "f32"}
    return {**known, **({"codes": codes[options["weights"]]} if options["weights"] in codes else {})}


def _rows(values: np.ndarray, offset: int, stride: int, rows: int, columns: int) -> np.ndarray:
    """float64[rows, columns] out of a flat buffer."""
    index = offset + np.arange(rows)[:, None] * stride + np.arange(columns)
    return values[index].astype(np.float64)


def _placed_rows(values: np.ndarray, offset: int, stride: int, elements: int) -> np.ndarray:
    """Rows put into an otherwise unwritten (NaN) flat buffer."""
    out = np.full(elements, np.nan)
    rows, columns = values.shape
    out[offset + np.arange(rows)[:, None] * stride + np.arange(columns)] = values
    return out


def _linear(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    n, k, u = constants["N"], constants["K"], uniforms
    x = _rows(inputs["x"], u["x_offset"], u["x_stride"], u["rows"], k)
    epilogue = options["epilogue"]
    y = x @ dense(options["weights"], inputs, 2 * n if epilogue == "swiglu" else n, k, constants["GROUP"]).T
    if options["bias"]:
        y = y + inputs["bias"].astype(np.float64)
    if epilogue == "swiglu":
        gate, up = y[:, :n], y[:, n:]
        y = gate * 0.5 * (1 + np.tanh(0.5 * gate)) * up
    if epilogue == "gate_residual":
        y = y * inputs["gate"][u["gate_offset"] :][:n].astype(np.float64)
    if epilogue in ("residual", "gate_residual"):
        y = y + _rows(inputs["residual"], u["residual_offset"], u["residual_stride"], u["rows"], n)
    return {"y": _placed_rows(y, u["y_offset"], u["y_stride"], outputs["y"])}


def _linear_case(
    weights: str,
    rows: int,
    n: int,
    k: int,
    *,
    group: int = 128,
    bias: bool = False,
    aligned: bool = True,
    gap: int = 0,
    scale: float = 1.0,
    epilogue: str = "none",
) -> Case:
    """`gap` is the number of unused elements before x, y, residual and gate and between rows; x reaches 3 `scale`."""
    rng = np.random.default_rng([rows, n, k])
    x = (rng.standard_normal(gap + rows * (k + gap)).clip(-3, 3) * scale).astype(np.float32)
    weight_rows = 2 * n if epilogue == "swiglu" else n
    inputs: dict[str, Any] = {"x": x, **random_weights(weights, weight_rows, k, group, seed=n + k)}
    if bias:
        inputs["bias"] = (rng.standard_normal(weight_rows) * scale).astype(np.float32)
    if epilogue in ("residual", "gate_residual"):
        inputs["residual"] = (rng.standard_normal(gap + rows * (n + gap)) * scale).astype(np.float32)
    if epilogue == "gate_residual":
        inputs["gate"] = rng.standard_normal(gap + n).astype(np.float32)
    places = {"residual_offset": gap, "residual_stride": n + gap, "gate_offset": gap}
    y_stride = n + gap if not aligned else -(-n // 4) * 4 + gap
    told = [weights, f"{rows}x{n}x{k}", *["bias"] * bias, *["unaligned"] * (not aligned), epilogue]
    name = "-".join(word for word in told if word != "none")
    return Case(
        name if group == 128 else f"{name}-group{group}",
        {"weights": weights, "bias": bias, "aligned": aligned, "epilogue": epilogue},
        {"N": n, "K": k, "GROUP": group},
        {"rows": rows, "x_offset": gap, "x_stride": k + gap, "y_offset": gap, "y_stride": y_stride, **places},
        inputs,
        {"y": gap + rows * y_stride},
        error=3e-6,
    )


def _linear_cases() -> list[Case]:
    case = _linear_case
    cases = [
        case("f16", 1, 8, 4),
        case("f16", 77, 50, 148, bias=True, gap=4),
        case("f16", 5, 33, 37, aligned=False, gap=3),
        case("f16", 3, 1, 1, aligned=False, bias=True),
        case("f16", 19, 24, 150, aligned=False, gap=1, bias=True),
        case("f32", 3, 7, 12, gap=8),
        case("f32", 66, 65, 148, bias=True),
        case("f32", 2, 9, 15, aligned=False, gap=2),
    ]
    for weights in ("binary", "ternary", "int4", "int8"):
        cases += [
            case(weights, 1, 130, 384),
            case(weights, 3, 17, 128, gap=4),
            case(weights, 77, 65, 384, bias=True, scale=41_000 / 3),
            case(weights, 9, 6, 256, aligned=False, gap=5),
            case(weights, 77, 65, 384, epilogue="swiglu", scale=41_000 / 3),
            case(weights, 4, 130, 128, epilogue="swiglu", bias=True, gap=4),
            case(weights, 131, 36, 256, epilogue="gate_residual", scale=41_000 / 3),
            case(weights, 3, 70, 128, epilogue="gate_residual", gap=4),
        ]
    cases += [
        case("f16", 77, 37, 160, epilogue="swiglu", bias=True, scale=41_000 / 3),
        case("f16", 5, 33, 37, aligned=False, gap=3, epilogue="swiglu", bias=True),
        case("f32", 66, 9, 148, epilogue="swiglu"),
        case("f32", 2, 9, 15, aligned=False, gap=2, epilogue="gate_residual", bias=True),
        case("f16", 67, 50, 64, epilogue="gate_residual", bias=True, gap=4),
        case("f16", 66, 65, 148, epilogue="residual", bias=True),
        case("int4", 130, 130, 256, epilogue="residual", gap=4, group=64),
        case("int4", 4, 9, 64, epilogue="residual", bias=True, group=32),
        case("ternary", 9, 6, 256, aligned=False, gap=5, epilogue="swiglu"),
    ]
    return [
        *cases,
        case("int4", 4, 5, 96, group=32),
        case("int8", 70, 36, 192, group=64),
        case("ternary", 129, 260, 128),
        case("ternary", 27, 64, 256, bias=True, gap=4),
        case("binary", 10, 128, 384),
    ]


def _outer(name: str, context: dict[str, Any], **facts: Any) -> Variant:
    return Variant(
        name,
        "linear_outer.wgsl",
        _tiled,
        limits=_limits(context),
        context=context,
        elements=_linear_elements,
        when={"aligned": (True,)},
        **facts,
    )


def _matrix_int8(name: str, context: dict[str, Any], default: bool = True) -> Variant:
    groups = context["groups"]
    return Variant(
        name,
        "linear_matrix.wgsl",
        _tiled,
        features=("subgroups", MATRIX_FEATURE),
        limits=_limits(context),
        context=context,
        elements=_converted_elements,
        error=2e-2 if groups else 3e-2,
        when={"weights": tuple(LOW_BIT), "aligned": (True,)},
        multiples={"K": operands.SEGMENT, "GROUP": operands.SEGMENT}
        if groups
        else {"K": context["depth"], "GROUP": 16},
        language_features=("packed_4x8_integer_dot_product",),
        matrix=("i8", "i32", 16, 16, 32),
        converts={"x": "int8" if groups else "int8_rows"},
        default=default,
    )


register(
    Kernel(
        name="linear",
        bindings=(
            Binding("x"),
            *weight_bindings(LINEAR_WEIGHTS),
            Binding("bias", when={"bias": (True,)}),
            Binding("residual", when={"epilogue": ("residual", "gate_residual")}),
            Binding("gate", when={"epilogue": ("gate_residual",)}),
            Binding("y", "read_write"),
        ),
        constants={"N": "u32", "K": "u32", "GROUP": "u32"},
        uniforms=dict.fromkeys(
            ["rows", "x_offset", "x_stride"]
            + ["residual_offset", "residual_stride", "gate_offset", "y_offset", "y_stride"],
            "u32",
        ),
        options={"weights": LINEAR_WEIGHTS, "bias": (False, True), "aligned": (True, False), "epilogue": EPILOGUES},
        variants=(
            Variant(
                "f32",
                "linear.wgsl",
                _tile_groups,
                context={**TILE.context(), "quads": False},
                elements=_linear_elements,
            ),
            Variant(
                "f32_quads",
                "linear.wgsl",
                _tile_groups,
                features=("subgroups",),
                context={**TILE.context(), "quads": True},
                elements=_linear_elements,
                default=False,
                software=True,
                when={"weights": ("binary", "ternary"), "aligned": (True,)},
                multiples={"N": 8 * TILE.columns},
            ),
            _outer("f32_staged", F32_STAGED),
            _outer("f32_tall", F32_TALL),
            _outer("f16", F16, features=("shader-f16",), error=2e-3),
            Variant(
                "int8_rows",
                "linear_bytes.wgsl",
                _tiled,
                limits=_limits(INT8_ROWS),
                context=INT8_ROWS,
                elements=_tile_elements,
                error=3e-2,
                when={"weights": tuple(LOW_BIT), "aligned": (True,)},
                multiples={"K": INT8_ROWS["depth"], "GROUP": 16},
                language_features=("packed_4x8_integer_dot_product",),
                converts={"x": "int8_tiles"},
            ),
            Variant(
                "matrix_f16",
                "linear_matrix.wgsl",
                _tiled,
                features=("shader-f16", "subgroups", MATRIX_FEATURE),
                limits=_limits(MATRIX_F16),
                context=MATRIX_F16,
                elements=_converted_elements,
                error=2e-3,
                when={"weights": ("f16", *LOW_BIT), "aligned": (True,)},
                multiples={"K": 32},
                matrix=("f16", "f32", 16, 16, 16),
                converts={"x": "f16"},
            ),
            _matrix_int8("matrix_int8", MATRIX_INT8),
            _matrix_int8("matrix_int8_narrow", MATRIX_INT8_NARROW),
            _matrix_int8("matrix_int8_groups", MATRIX_INT8_GROUPS, default=False),
        ),
        reference=_linear,
        cases=_linear_cases,
    )
)


def _embedding(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    columns, u = constants["COLUMNS"], uniforms
    bits = {"f16": 16, "f32": 32, "int4": 4, "int8": 8}[options["weights"]]
    words = inputs["weight" if "weight" in inputs else "codes"].size
    table = dense(options["weights"], inputs, words * 32 // bits // columns, columns, constants["GROUP"])
    ids = inputs["ids"][: u["rows"]].astype(np.int64) - u["first_row"]
    inside = (ids >= 0) & (ids < u["table_rows"])
    y = np.where(inside[:, None], table[np.where(inside, ids, 0)], np.nan)
    return {"y": _placed_rows(y, u["y_offset"], u["y_stride"], outputs["y"])}


def _embedding_case(
    weights: str, rows: int, vocabulary: int, columns: int, group: int = 128, gap: int = 0, first_row: int = 0
) -> Case:
    """With `first_row` the table is a window of a taller one, half of whose ids lie outside."""
    ids = np.random.default_rng(rows).integers(0, vocabulary + 2 * first_row, rows).astype(np.uint32)
    ids[-1] = first_row + vocabulary - 1
    stride = columns + gap
    return Case(
        f"{weights}-{rows}x{columns}{'-window' if first_row else ''}",
        {"weights": weights},
        {"COLUMNS": columns, "GROUP": group},
        {"rows": rows, "y_offset": gap, "y_stride": stride, "first_row": first_row, "table_rows": vocabulary},
        {"ids": ids, **random_weights(weights, vocabulary, columns, group, seed=columns)},
        {"y": gap + rows * stride},
        error=1e-6,
    )


def _embedding_cases() -> list[Case]:
    return [
        _embedding_case("f16", 1, 10, 64),
        _embedding_case("f16", 77, 31, 50, gap=3),
        _embedding_case("f16", 5, 8, 33),  # 8 rows, so that the word count gives the vocabulary
        _embedding_case("f32", 6, 9, 35, gap=1),
        _embedding_case("int4", 77, 100, 256, gap=2),
        _embedding_case("int4", 3, 11, 96, group=32),
        _embedding_case("int8", 13, 30, 128),
        _embedding_case("f16", 40, 8, 34, gap=1, first_row=4),
        _embedding_case("int4", 50, 20, 128, first_row=10),
    ]


register(
    Kernel(
        name="embedding",
        bindings=(
            Binding("ids", dtype="u32"),
            *weight_bindings(("f16", "f32", "int4", "int8")),
            Binding("y", "read_write"),
        ),
        constants={"COLUMNS": "u32", "GROUP": "u32"},
        uniforms={"rows": "u32", "y_offset": "u32", "y_stride": "u32", "first_row": "u32", "table_rows": "u32"},
        options={"weights": ("f16", "f32", "int4", "int8")},
        variants=(
            Variant(
                "f32",
                "embedding.wgsl",
                threads(["mul", "rows", ["ceil_div", "COLUMNS", 4]]),
                context={"aligned": False},
            ),
        ),
        reference=_embedding,
        cases=_embedding_cases,
    )
)
