"""`conv2d`: convolution as an implicit matrix product, pictures as height, width, channels.

A dispatch computes `rows` rows of y from `row_first` on. Of x and residual it needs no more than the rows that
these take, so each of x, y and residual may be a window of its picture: `..._first` is the picture's row where
the window begins, `..._offset` elements after the binding's start.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from webgpu_kernels.grid import Tile
from webgpu_kernels.registry import MATRIX_FEATURE, Binding, Case, Groups, Kernel, Numbers, Options, Variant, register
from webgpu_kernels.weights import DENSE, dense, random_weights, weight_bindings

Arrays = dict[str, np.ndarray]

TILE = Tile(rows=16, columns=8)
# Of the templates, which say what each number is. A tile is `tile_rows` rows of 16 pixels by `tile_columns` channels.
F32_STAGED = {"operand": "f32", "tile_rows": 16, "tile_columns": 64, "depth": 8, "stages": 2, "prefetch": True}
F16 = {"operand": "f16", "tile_rows": 8, "tile_columns": 128, "depth": 16, "stages": 1, "prefetch": True}
MATRIX_F16 = {
    "tile_rows": 16,
    "tile_columns": 128,
    "sub_rows": 4,
    "sub_columns": 64,
    "depth": 16,
    "taps": 3,
    "stages": 1,
    "prefetch": False,
}
NORMS = ("none", "affine", "affine_silu")


def _width(options: Options) -> Any:
    """Of y, as an expression."""
    return ["mul", 2, "width"] if options["upsample"] else "width"


def _tile_groups(options: Options) -> Groups:
    return TILE.groups("OUT_CHANNELS", ["mul", "rows", ["ceil_div", _width(options), TILE.rows]])


def _staged_groups(options: Options) -> Groups:
    tiles = ["mul", ["ceil_div", "rows", options["tile_rows"]], ["ceil_div", _width(options), 16]]
    return ["ceil_div", "OUT_CHANNELS", options["tile_columns"]], tiles, 1


def matrix_bytes(numbers: Options) -> int:
    """Workgroup memory that `conv2d_matrix.wgsl` declares with these numbers of its context; the same sums."""
    line = numbers["depth"] // 8 + 1
    staged = 18 * (numbers["tile_rows"] + 2) + numbers["stages"] * numbers["taps"] * numbers["tile_columns"]
    return 16 * max(staged * line, numbers["tile_rows"] // numbers["sub_rows"] * numbers["tile_columns"] * 4)


def _elements(options: Options) -> dict[str, str]:
    if not options["aligned"]:
        return {}
    return {
        "x": "vec4f",
        "weight": {"f16": "vec2u", "f32": "vec4f"}[options["weights"]],
        "scale": "vec4f",
        "shift": "vec4f",
    }


def _matrix_elements(options: Options) -> dict[str, str]:
    return {**_elements(options), "weight": "vec4u"}


def _operand(inputs: Arrays, options: Options, constants: Numbers, u: Numbers, half: int) -> np.ndarray:
    """What is convolved, f64[rows + 2 half, width + 2 half, channels]: normalized, doubled, zero outside."""
    up, channels = 1 + options["upsample"], constants["IN_CHANNELS"]
    first, last = u["row_first"] - half, u["row_first"] + u["rows"] + half
    inside = np.arange(max(first, 0), min(last, u["height"] * up))
    start = u["x_offset"] + (inside[0] // up - u["x_first"]) * u["width"] * channels
    x = inputs["x"].astype(np.float64)[start:][: (inside[-1] // up - inside[0] // up + 1) * u["width"] * channels]
    if options["norm"] != "none":
        x = x.reshape(-1, channels) * inputs["scale"][:channels].astype(np.float64) + inputs["shift"][:channels]
    if options["norm"] == "affine_silu":
        x = x * 0.5 * (1 + np.tanh(0.5 * x))
    picture = x.reshape(-1, u["width"], channels)[inside // up - inside[0] // up].repeat(up, axis=1)
    return np.pad(picture, ((inside[0] - first, last - 1 - inside[-1]), (half, half), (0, 0)))


def _window(buffer: np.ndarray, name: str, u: Numbers, row: int) -> np.ndarray:
    """The computed rows of y or residual in their buffer, as a view; `row` is the elements of a row."""
    start = u[f"{name}_offset"] + (u["row_first"] - u[f"{name}_first"]) * row
    return buffer[start : start + u["rows"] * row]


def _conv2d(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    """With residual "accumulate", `inputs["y"]` is what y holds before."""
    size, n, channels = constants["KERNEL_SIZE"], constants["OUT_CHANNELS"], constants["IN_CHANNELS"]
    padded = _operand(inputs, options, constants, uniforms, size // 2)
    height, width = uniforms["rows"], uniforms["width"] * (1 + options["upsample"])
    weight = dense(options["weights"], inputs, n, size * size * channels, 1).reshape(n, size, size, channels)
    y = np.zeros((height, width, n))
    for row in range(size):
        for column in range(size):
            y += padded[row : row + height, column : column + width] @ weight[:, row, column].T
    if options["bias"]:
        y += inputs["bias"][:n].astype(np.float64)
    y = y.reshape(-1)
    if options["residual"] != "none":
        name = {"add": "residual", "accumulate": "y"}[options["residual"]]
        y += _window(inputs[name].astype(np.float64), name, uniforms, width * n)
    out = np.full(outputs["y"], np.nan)
    _window(out, "y", uniforms, width * n)[:] = y
    return {"y": out}


def _windows(height: int, rows: tuple[int, int], half: int, up: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(first, end) rows of x and of y that a case binds: no more of x than is read, one more of y on each side."""
    first, last = max(rows[0] - half, 0), min(rows[0] + rows[1] + half, height * up) - 1
    return (first // up, last // up + 1), (max(rows[0] - 1, 0), rows[0] + rows[1] + 1)


def _guarded(values: np.ndarray, before: int, after: int = 0) -> np.ndarray:
    """`values` between so many NaN, where no kernel may read or write."""
    return np.pad(values, (before, after), constant_values=np.nan).astype(np.float32)


def _case(
    weights: str,
    height: int,
    width: int,
    channels: tuple[int, int],
    size: int,
    *,
    rows: tuple[int, int] | None = None,
    offset: int = 0,
    **options: Any,
) -> Case:
    """`channels` are those in and out, `rows` the first computed row and how many; `offset` is unused elements before
    x and residual, and one more before y."""
    options = {"bias": True, "aligned": True, "norm": "none", "upsample": False, "residual": "none"} | options
    into, out = channels
    up = 1 + options["upsample"]
    rows = rows or (0, height * up)
    (x_first, x_end), (y_first, y_end) = _windows(height, rows, size // 2, up)
    y_row = width * up * out
    rng = np.random.default_rng([height, width, into, out])
    inputs: dict[str, Any] = {
        "x": _guarded(rng.standard_normal((x_end - x_first) * width * into) * 40, offset),
        **random_weights(weights, out, size * size * into, 1, seed=size),
    }
    if options["bias"]:
        inputs["bias"] = (rng.standard_normal(out) * 40).astype(np.float32)
    if options["norm"] != "none":
        inputs["scale"] = (rng.standard_normal(into) / 20).astype(np.float32)
        inputs["shift"] = rng.standard_normal(into).astype(np.float32)
    if options["residual"] == "add":
        inputs["residual"] = _guarded(rng.standard_normal(rows[1] * y_row) * 40, offset)
    if options["residual"] == "accumulate":
        before, after = ((rows[0] - y_first) * y_row, (y_end - rows[0] - rows[1]) * y_row)
        inputs["y"] = _guarded(rng.standard_normal(rows[1] * y_row) * 40, offset + 1 + before, after)
    named = [name for name in (options["norm"], options["residual"]) if name != "none"]
    named += [name for name, said in (("up", up == 2), ("plain", not options["bias"])) if said]
    named += [f"rows{rows[0]}+{rows[1]}"] * (rows[1] < height * up) + ["unaligned"] * (not options["aligned"])
    return Case(
        "-".join([weights, f"{height}x{width}", f"{into}to{out}", f"k{size}", *named]),
        {"weights": weights, **options},
        {"IN_CHANNELS": into, "OUT_CHANNELS": out, "KERNEL_SIZE": size},
        {"height": height, "width": width, "x_first": x_first, "x_offset": offset, "row_first": rows[0],
         "rows": rows[1], "y_offset": offset + 1, "y_first": y_first, "residual_offset": offset,
         "residual_first": rows[0]},
        inputs,
        {"y": offset + 1 + (y_end - y_first) * y_row},
        error=3e-6,
    )  # fmt: skip


def _cases() -> list[Case]:
    return [
        _case("f16", 5, 7, (8, 12), 3),
        _case("f16", 1, 1, (4, 5), 3, offset=4),
        _case("f16", 9, 17, (32, 3), 3, offset=8),
        _case("f16", 6, 16, (64, 72), 1, bias=False),
        _case("f16", 4, 34, (16, 16), 3, bias=False),
        _case("f16", 6, 5, (3, 9), 3, aligned=False, offset=3),
        _case("f16", 5, 9, (7, 4), 1, aligned=False, bias=False),
        _case("f32", 4, 6, (12, 10), 3),
        _case("f32", 3, 8, (5, 3), 3, aligned=False, offset=1),
        _case("f32", 7, 11, (8, 8), 5, bias=False),
        # Channels that matrices take: slices and tiles of them, bands, edges, every option.
        _case("f16", 9, 17, (32, 32), 3, offset=4),
        _case("f16", 13, 35, (64, 160), 3, rows=(3, 9), norm="affine_silu", residual="add", offset=12),
        _case("f16", 8, 18, (96, 64), 3, rows=(8, 8), upsample=True, norm="affine", residual="accumulate", bias=False),
        _case("f16", 5, 16, (160, 32), 3, upsample=True),
        # Bands: in the middle, at the end, one row; every option at each of the kernel sizes.
        _case("f16", 21, 19, (36, 40), 3, rows=(6, 9), offset=12, norm="affine_silu", residual="add"),
        _case("f16", 21, 19, (36, 40), 3, rows=(15, 6), norm="affine", residual="accumulate", bias=False),
        _case("f16", 9, 33, (8, 4), 3, rows=(4, 1), offset=4, norm="affine_silu"),
        _case("f16", 9, 17, (68, 8), 3, rows=(5, 8), upsample=True, offset=4),
        _case("f16", 5, 6, (16, 70), 3, upsample=True, norm="affine_silu", residual="accumulate"),
        _case("f16", 7, 10, (8, 36), 1, rows=(3, 7), upsample=True, residual="accumulate", bias=False),
        _case("f16", 7, 10, (12, 6), 1, rows=(2, 3), norm="affine_silu", residual="add", offset=4),
        _case("f32", 11, 9, (20, 8), 3, rows=(10, 1), norm="affine_silu", residual="add"),
        _case("f32", 6, 21, (12, 68), 3, rows=(7, 5), upsample=True, residual="accumulate"),
        _case("f32", 12, 6, (8, 6), 5, rows=(3, 4), norm="affine", offset=8),
        _case("f16", 9, 6, (7, 5), 3, rows=(2, 3), aligned=False, offset=3, norm="affine_silu", residual="add"),
        _case("f32", 4, 5, (5, 3), 3, rows=(1, 6), aligned=False, upsample=True, norm="affine", residual="accumulate"),
    ]


register(
    Kernel(
        name="conv2d",
        bindings=(
            Binding("x"),
            *weight_bindings(DENSE),
            Binding("bias", when={"bias": (True,)}),
            Binding("scale", when={"norm": NORMS[1:]}),
            Binding("shift", when={"norm": NORMS[1:]}),
            Binding("residual", when={"residual": ("add",)}),
            Binding("y", "read_write"),
        ),
        constants={"IN_CHANNELS": "u32", "OUT_CHANNELS": "u32", "KERNEL_SIZE": "u32"},
        uniforms=dict.fromkeys(
            ["height", "width", "x_first", "x_offset", "row_first", "rows"]
            + ["y_offset", "y_first", "residual_offset", "residual_first"],
            "u32",
        ),
        options={
            "weights": DENSE,
            "bias": (True, False),
            "aligned": (True, False),
            "norm": NORMS,
            "upsample": (False, True),
            "residual": ("none", "add", "accumulate"),
        },
        variants=(
            Variant("f32", "conv2d.wgsl", _tile_groups, context={**TILE.context(), "quads": False}, elements=_elements),
            Variant(
                "f32_quads",
                "conv2d.wgsl",
                _tile_groups,
                features=("subgroups",),
                context={**TILE.context(), "quads": True},
                elements=_elements,
                default=False,
                software=True,
                when={"aligned": (True,)},
                multiples={"KERNEL_SIZE": 3, "OUT_CHANNELS": 4 * TILE.columns},
            ),
            Variant(
                "f32_staged",
                "conv2d_staged.wgsl",
                _staged_groups,
                context=F32_STAGED,
                elements=_elements,
                when={"aligned": (True,)},
                multiples={"OUT_CHANNELS": 4},
            ),
            Variant(
                "f16",
                "conv2d_staged.wgsl",
                _staged_groups,
                features=("shader-f16",),
                context=F16,
                elements=_elements,
                error=2e-3,
                when={"aligned": (True,)},
                multiples={"OUT_CHANNELS": 4},
            ),
            # KERNEL_SIZE 3: no network has kernels of 9 x 9.
            Variant(
                "matrix_f16",
                "conv2d_matrix.wgsl",
                _staged_groups,
                features=("shader-f16", "subgroups", MATRIX_FEATURE),
                limits={"maxComputeWorkgroupStorageSize": matrix_bytes(MATRIX_F16)},
                context=MATRIX_F16,
                elements=_matrix_elements,
                error=2e-3,
                when={"weights": ("f16",), "aligned": (True,)},
                multiples={"KERNEL_SIZE": 3, "IN_CHANNELS": MATRIX_F16["depth"], "OUT_CHANNELS": 32},
                matrix=("f16", "f32", 16, 16, 16),
            ),
        ),
        reference=_conv2d,
        cases=_cases,
    )
)
