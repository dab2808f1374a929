"""Norms over rows: layer_norm, rms_norm and rms_norm_rotary.

Statistics are f32 and survive magnitudes of 41,000 and a mean far above the deviation.
"""

from __future__ import annotations

import numpy as np

from webgpu_kernels.grid import MAX_GROUPS, folded
from webgpu_kernels.registry import Binding, Case, Expression, Kernel, Variant, register
from webgpu_kernels.strided import gather, guarded, scatter

LARGE = 41_000.0  # magnitude that residual streams of the networks reach
FOLDED_ROWS = MAX_GROUPS * 8 + 500  # with 8 rows a workgroup, the grid folds into y

_AFFINE = ("weight", "weight_bias")


def _row_variants(template: str, rows: Expression) -> tuple[Variant]:
    """One variant: 8 rows a workgroup, 8 threads a row. Measured on SwiftShader and an H100: with 16
    threads a row the first takes 1.5 times as long, with 4 the second does."""
    lanes, group_rows = 8, 8
    context = {"lanes": lanes, "rows": group_rows, "unroll": 4}
    return (Variant("baseline", template, folded(["ceil_div", rows, group_rows]), context=context),)


def _rows_reference(inputs, constants, uniforms) -> np.ndarray:
    sizes = (uniforms["rows"], constants["COLUMNS"])
    return gather(inputs["x"], uniforms["x_offset"], sizes, (uniforms["x_stride"], 1))


def _row_buffers(x: np.ndarray) -> tuple[dict[str, int], dict[str, np.ndarray], dict[str, int]]:
    """Uniforms, inputs and outputs of a kernel over rows, with gaps between the rows of x and y."""
    rows, columns = x.shape
    uniforms = {"rows": rows, "x_offset": 5, "x_stride": columns + 3, "y_offset": 2, "y_stride": columns + 1}
    inputs = {"x": guarded(5 + rows * (columns + 3), 5, (columns + 3, 1), x)}
    return uniforms, inputs, {"y": 2 + rows * (columns + 1)}


def _test_rows(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows by name: one value, odd sizes, large values, a mean of 41,000, one outlier first, many rows."""
    outlier = random.standard_normal((3, 768))
    outlier[:, 0] = LARGE
    return {
        "one": random.standard_normal((1, 1)) + 1,
        "odd": random.standard_normal((77, 131)),
        "large": random.standard_normal((3, 384)) * LARGE,
        "offset": random.standard_normal((5, 1000)) + LARGE,
        "outlier": outlier,
        "folded": random.standard_normal((FOLDED_ROWS, 2)),
    }


def _layer_norm_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    x = _rows_reference(inputs, constants, uniforms)
    columns = constants["COLUMNS"]
    y = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + constants["EPS"])
    if options["affine"] in _AFFINE:
        y = y * inputs["weight"][:columns].astype(np.float64)
    if options["affine"] == "weight_bias":
        y = y + inputs["bias"][:columns].astype(np.float64)
    if options["modulate"]:
        scale = gather(inputs["scale"], uniforms["scale_offset"], (columns,), (1,))
        y = y * (1 + scale) + gather(inputs["shift"], uniforms["shift_offset"], (columns,), (1,))
    return {"y": scatter(outputs["y"], uniforms["y_offset"], (uniforms["y_stride"], 1), y)}


def _layer_norm_case(name: str, x: np.ndarray, affine: str, modulate: bool) -> Case:
    random = np.random.default_rng(5)
    columns = x.shape[1]
    uniforms, inputs, outputs = _row_buffers(x)
    if affine in _AFFINE:
        inputs["weight"] = random.standard_normal(columns).astype(np.float32)
    if affine == "weight_bias":
        inputs["bias"] = random.standard_normal(columns).astype(np.float32)
    if modulate:
        inputs["scale"] = guarded(columns + 9, 7, (1,), random.standard_normal(columns))
        inputs["shift"] = guarded(columns + 4, 3, (1,), random.standard_normal(columns))
    offsets = {"scale_offset": 7, "shift_offset": 3} if modulate else {"scale_offset": 0, "shift_offset": 0}
    constants = {"COLUMNS": columns, "EPS": 1e-6}
    return Case(name, {"affine": affine, "modulate": modulate}, constants, uniforms | offsets, inputs, outputs)


def _layer_norm_cases() -> list[Case]:
    tests = _test_rows(np.random.default_rng(6))
    cases = [_layer_norm_case(f"none_{name}", x, "none", False) for name, x in tests.items() if name != "one"]
    for affine in ("none", *_AFFINE):
        cases.append(_layer_norm_case(f"{affine}_modulated", tests["odd"], affine, True))
    for affine in _AFFINE:
        cases.append(_layer_norm_case(affine, tests["odd"], affine, False))
    # one column: the deviation is 0 and the bias alone is left
    cases.append(_layer_norm_case("one_column", tests["one"], "weight_bias", False))
    return cases


LAYER_NORM = register(
    Kernel(
        name="layer_norm",
        bindings=(
            Binding("x"),
            Binding("weight", when={"affine": _AFFINE}),
            Binding("bias", when={"affine": ("weight_bias",)}),
            Binding("scale", when={"modulate": (True,)}),
            Binding("shift", when={"modulate": (True,)}),
            Binding("y", "read_write"),
        ),
        constants={"COLUMNS": "u32", "EPS": "f32"},
        uniforms=dict.fromkeys(
            ["rows", "x_offset", "x_stride", "scale_offset", "shift_offset", "y_offset", "y_stride"], "u32"
        ),
        options={"affine": ("none", *_AFFINE), "modulate": (False, True)},
        variants=_row_variants("layer_norm.wgsl", "rows"),
        reference=_layer_norm_reference,
        cases=_layer_norm_cases,
    )
)


def _rms_norm_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    x = _rows_reference(inputs, constants, uniforms)
    weight = inputs["weight"][: constants["COLUMNS"]].astype(np.float64)
    y = x / np.sqrt((x * x).mean(1, keepdims=True) + constants["EPS"]) * weight
    return {"y": scatter(outputs["y"], uniforms["y_offset"], (uniforms["y_stride"], 1), y)}


def _rms_norm_cases() -> list[Case]:
    random = np.random.default_rng(7)
    cases = []
    for name, x in _test_rows(random).items():
        uniforms, inputs, outputs = _row_buffers(x)
        inputs["weight"] = random.standard_normal(x.shape[1]).astype(np.float32)
        cases.append(Case(name, {}, {"COLUMNS": x.shape[1], "EPS": 1e-6}, uniforms, inputs, outputs))
    return cases


RMS_NORM = register(
    Kernel(
        name="rms_norm",
        bindings=(Binding("x"), Binding("weight"), Binding("y", "read_write")),
        constants={"COLUMNS": "u32", "EPS": "f32"},
        uniforms={"rows": "u32", "x_offset": "u32", "x_stride": "u32", "y_offset": "u32", "y_stride": "u32"},
        options={},
        variants=_row_variants("rms_norm.wgsl", "rows"),
        reference=_rms_norm_reference,
        cases=_rms_norm_cases,
    )
)


def _rotary_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    tokens, heads, size = uniforms["tokens"], constants["HEADS"], constants["HEAD_SIZE"]
    strides = (uniforms["x_stride"], uniforms["x_head_stride"], 1)
    x = gather(inputs["x"], uniforms["x_offset"], (tokens, heads, size), strides)
    x = x / np.sqrt((x * x).mean(2, keepdims=True) + constants["EPS"]) * inputs["weight"][:size].astype(np.float64)
    table = (uniforms["table_row"] * (size // 2), (tokens, 1, size // 2), (size // 2, 0, 1))
    cos, sin = gather(inputs["cos"], *table), gather(inputs["sin"], *table)
    if options["layout"] == "interleaved":
        first, second = np.s_[..., 0::2], np.s_[..., 1::2]
    else:
        first, second = np.s_[..., : size // 2], np.s_[..., size // 2 :]
    y = np.empty_like(x)
    y[first] = x[first] * cos - x[second] * sin
    y[second] = x[second] * cos + x[first] * sin
    strides = (uniforms["y_stride"], uniforms["y_head_stride"], 1)
    return {"y": scatter(outputs["y"], uniforms["y_offset"], strides, y)}


def _rotary_case(name, layout: str, tokens: int, heads: int, size: int, magnitude: float, table_row: int) -> Case:
    random = np.random.default_rng(8)
    x = random.standard_normal((tokens, heads, size)) * magnitude
    angles = random.uniform(-np.pi, np.pi, (tokens, size // 2))
    x_strides = (heads * size + 5, size, 1)
    y_strides = (size + 1, tokens * (size + 1) + 2, 1)  # heads outermost
    table = guarded((table_row + tokens) * (size // 2), table_row * (size // 2), (size // 2, 1), np.cos(angles))
    inputs = {
        "x": guarded(3 + tokens * x_strides[0], 3, x_strides, x),
        "weight": random.standard_normal(size).astype(np.float32),
        "cos": table,
        "sin": guarded(table.size, table_row * (size // 2), (size // 2, 1), np.sin(angles)),
    }
    uniforms = {
        "tokens": tokens, "x_offset": 3, "x_stride": x_strides[0], "x_head_stride": size, "table_row": table_row,
        "y_offset": 4, "y_stride": y_strides[0], "y_head_stride": y_strides[1],
    }  # fmt: skip
    constants = {"HEADS": heads, "HEAD_SIZE": size, "EPS": 1e-6}
    return Case(name, {"layout": layout}, constants, uniforms, inputs, {"y": 4 + heads * y_strides[1]})


def _rotary_cases() -> list[Case]:
    cases = []
    for layout in ("interleaved", "half"):
        cases.append(_rotary_case(f"{layout}_one_token", layout, 1, 1, 2, 1.0, 0))
        cases.append(_rotary_case(f"{layout}_odd", layout, 77, 3, 128, 1.0, 11))
        cases.append(_rotary_case(f"{layout}_large", layout, 3, 5, 96, LARGE, 1))
    cases.append(_rotary_case("folded", "half", FOLDED_ROWS // 256, 256, 2, 1.0, 0))
    return cases


RMS_NORM_ROTARY = register(
    Kernel(
        name="rms_norm_rotary",
        bindings=(Binding("x"), Binding("weight"), Binding("cos"), Binding("sin"), Binding("y", "read_write")),
        constants={"HEADS": "u32", "HEAD_SIZE": "u32", "EPS": "f32"},
        uniforms=dict.fromkeys(
            ["tokens", "x_offset", "x_stride", "x_head_stride", "table_row", "y_offset", "y_stride", "y_head_stride"],
            "u32",
        ),
        options={"layout": ("interleaved", "half")},
        variants=_row_variants("rms_norm_rotary.wgsl", ["mul", "tokens", "HEADS"]),
        reference=_rotary_reference,
        cases=_rotary_cases,
    )
)
