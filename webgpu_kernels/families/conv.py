"""`conv2d`: convolution as an implicit matrix product, images as height, width, channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from webgpu_kernels.grid import StagedTile, Tile
from webgpu_kernels.registry import Binding, Case, Kernel, Numbers, Options, Variant, register
from webgpu_kernels.weights import DENSE, dense, random_weights, weight_bindings

Arrays = dict[str, np.ndarray]

TILE = Tile(rows=16, columns=4)
STAGED_F16 = StagedTile(operand="f16", thread_rows=8, thread_columns=4, depth=32)


def _elements(options: Options) -> dict[str, str]:
    if not options["aligned"]:
        return {}
    return {"x": "vec4f", "weight": {"f16": "vec2u", "f32": "vec4f"}[options["weights"]]}


def _conv2d(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    height, width, size = uniforms["height"], uniforms["width"], constants["KERNEL_SIZE"]
    n, channels = constants["OUT_CHANNELS"], constants["IN_CHANNELS"]
    x = inputs["x"].astype(np.float64)[uniforms["x_offset"] :][: height * width * channels]
    half = size // 2
    padded = np.pad(x.reshape(height, width, channels), ((half, half), (half, half), (0, 0)))
    weight = dense(options["weights"], inputs, n, size * size * channels, 1).reshape(n, size, size, channels)
    y = np.zeros((height, width, n))
    for row in range(size):
        for column in range(size):
            y += padded[row : row + height, column : column + width] @ weight[:, row, column].T
    if options["bias"]:
        y += inputs["bias"].astype(np.float64)
    out = np.full(outputs["y"], np.nan)
    out[uniforms["y_offset"] : uniforms["y_offset"] + y.size] = y.reshape(-1)
    return {"y": out}


def _case(
    weights: str,
    height: int,
    width: int,
    channels: tuple[int, int],
    size: int,
    *,
    bias: bool = True,
    aligned: bool = True,
    offset: int = 0,
) -> Case:
    """`channels` are those in and out; `offset` is unused elements before x and y."""
    into, out = channels
    rng = np.random.default_rng([height, width, into, out])
    inputs: dict[str, Any] = {
        "x": (rng.standard_normal(offset + height * width * into) * 40).astype(np.float32),
        **random_weights(weights, out, size * size * into, 1, seed=size),
    }
    if bias:
        inputs["bias"] = (rng.standard_normal(out) * 40).astype(np.float32)
    return Case(
        f"{weights}-{height}x{width}-{into}to{out}-k{size}{'' if bias else '-plain'}{'' if aligned else '-unaligned'}",
        {"weights": weights, "bias": bias, "aligned": aligned},
        {"IN_CHANNELS": into, "OUT_CHANNELS": out, "KERNEL_SIZE": size},
        {"height": height, "width": width, "x_offset": offset, "y_offset": offset},
        inputs,
        {"y": offset + height * width * out},
        error=3e-6,
    )


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
    ]


register(
    Kernel(
        name="conv2d",
        bindings=(
            Binding("x"),
            *weight_bindings(DENSE),
            Binding("bias", when={"bias": (True,)}),
            Binding("y", "read_write"),
        ),
        constants={"IN_CHANNELS": "u32", "OUT_CHANNELS": "u32", "KERNEL_SIZE": "u32"},
        uniforms={"height": "u32", "width": "u32", "x_offset": "u32", "y_offset": "u32"},
        options={"weights": DENSE, "bias": (True, False), "aligned": (True, False)},
        variants=(
            Variant(
                "f32",
                "conv2d.wgsl",
                TILE.groups("OUT_CHANNELS", ["mul", "height", ["ceil_div", "width", TILE.rows]]),
                context=TILE.context(),
                elements=_elements,
            ),
            Variant(
                "f16",
                "conv2d_staged.wgsl",
                STAGED_F16.groups("OUT_CHANNELS", ["mul", "height", "width"]),
                features=("shader-f16",),
                context=STAGED_F16.context(),
                elements=_elements,
                error=2e-3,
            ),
        ),
        reference=_conv2d,
        cases=_cases,
    )
)
