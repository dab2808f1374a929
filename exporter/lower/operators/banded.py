"""Dispatches over the rows of a picture: convolutions, products with 1x1 kernels, statistics of group norms, copies."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from exporter.lower.bands import (
    END,
    FIRST,
    ROWS,
    Expression,
    Picture,
    add,
    band_rows,
    ceil_div,
    divisor,
    floor_div,
    least,
    most,
    mul,
    sub,
)
from exporter.lower.lowering import Lowering
from exporter.lower.operators.common import refuse
from exporter.lower.operators.matmul import NO_EPILOGUE
from exporter.lower.sizes import to_json
from exporter.lower.views import Operand, View
from exporter.passes.fuse_linear import stored_weight
from exporter.passes.match import attribute, producer

GROUP_NORM_CHUNKS = 64  # of each band


class Kernel(NamedTuple):
    """A stored convolution: its tensors, f16 or f32, and sizes."""

    weight: str
    bias: str | None
    kind: str
    into: int
    out: int
    size: int

    @property
    def half(self) -> int:
        return self.size // 2

    @property
    def source(self) -> str:
        return self.weight.removesuffix(".weight")

    def tensors(self) -> dict[str, Operand]:
        return {"weight": self.weight} | ({"bias": self.bias} if self.bias is not None else {})


def stored_kernel(node: ir.Node, weight: ir.Value, bias: ir.Value | None) -> Kernel:
    """The convolution whose weight the graph reads in ONNX's order and the bundle has as [out, height, width, in]."""
    order = producer(weight, "Transpose")
    stored = (
        stored_weight(order.inputs[0]) if order is not None and list(attribute(order, "perm")) == [0, 3, 1, 2] else None
    )
    if stored is None:
        raise refuse(node, "a stored weight expected")
    out, size, _, into = (int(s) for s in stored.shape)
    kind = "f16" if stored.dtype == ir.DataType.FLOAT16 else "f32"
    return Kernel(stored.name, bias.name if bias is not None else None, kind, into, out, size)


class Norm(NamedTuple):
    """A group norm of a node, before its statistics are known."""

    groups: int
    epsilon: float
    weight: str
    bias: str

    @staticmethod
    def of(node: ir.Node, weight: ir.Value, bias: ir.Value) -> Norm:
        return Norm(attribute(node, "num_groups"), attribute(node, "epsilon", 1e-5), weight.name, bias.name)


class Factors(NamedTuple):
    """A group norm as a factor and a summand for each channel; `silu` follows it."""

    scale: View
    shift: View
    silu: bool


def picture(low: Lowering, view: View) -> Picture:
    """An image [1, C, H, W] that lies height, width, channels."""
    _, channels, height, width = view.shape
    return Picture(view.operand, to_json(height), to_json(width), int(channels), to_json(view.offset))


def emit_stats(
    low: Lowering, norm: Norm, x: Picture, stats: View, rows: tuple[Expression, Expression], source: str
) -> None:
    """Moments of the rows of x, into the band's slots; inside a loop over them."""
    window, offset = x.rows(*rows)
    low.dispatch(
        "group_norm_stats",
        {"x": window, "stats": stats},
        source=source,
        constants={"CHANNELS": x.channels, "GROUPS": norm.groups, "CHUNKS": GROUP_NORM_CHUNKS},
        uniforms={
            "pixels": mul(sub(rows[1], rows[0]), x.width),
            "x_offset": offset,
            "slot_first": mul("band", GROUP_NORM_CHUNKS),
        },
    )


def new_stats(low: Lowering, norm: Norm, bands: Expression, name: str) -> View:
    index = low.add_value(f"{name}/stats", "temporary", mul(bands, GROUP_NORM_CHUNKS * norm.groups * 3))
    return View(index, (), ())


def emit_affine(
    low: Lowering, norm: Norm, stats: View, bands: Expression, channels: int, silu: bool, source: str
) -> Factors:
    """From the moments of all bands, a factor and a summand for each channel."""
    scale, shift = (
        View(low.add_value(f"{source}/{part}", "temporary", channels), (), ()) for part in Factors._fields[:2]
    )
    low.dispatch(
        "group_norm_affine",
        {"stats": stats, "weight": norm.weight, "bias": norm.bias, "scale": scale, "shift": shift},
        source=source,
        constants={"CHANNELS": channels, "GROUPS": norm.groups, "EPS": norm.epsilon},
        uniforms={"slots": mul(bands, GROUP_NORM_CHUNKS)},
    )
    return Factors(scale, shift, silu)


def norm_factors(low: Lowering, norm: Norm, x: Picture, silu: bool, source: str) -> Factors:
    """Statistics of a whole picture, band by band."""
    most_rows = band_rows(x.height, x.row)
    bands = ceil_div(x.height, most_rows)
    stats = new_stats(low, norm, bands, source)
    with low.loop(x.height, most_rows):
        emit_stats(low, norm, x, stats, (FIRST, END), source)
    return emit_affine(low, norm, stats, bands, x.channels, silu, source)


def emit_conv(
    low: Lowering,
    kernel: Kernel,
    x: Picture,
    y: Picture,
    rows: tuple[Expression, Expression] = (FIRST, END),
    *,
    factors: Factors | None = None,
    upsample: bool = False,
    residual: Picture | None = None,
    when: Expression = 1,
) -> None:
    """Rows of y = kernel(factors(x)), doubled first if `upsample`, plus `residual`, which may be y itself."""
    first, end = rows
    above, below = most(sub(first, kernel.half), 0), least(add(end, kernel.half), y.height)
    reach = (floor_div(above, 2), ceil_div(below, 2)) if upsample else (above, below)
    x_window, x_offset = x.rows(*reach)
    y_window, y_offset = y.rows(first, end)
    bindings = {"x": x_window, **kernel.tensors()}
    if factors is not None:
        bindings |= {"scale": factors.scale, "shift": factors.shift}
    residual_offset: Expression = 0
    if residual is not None and residual != y:
        bindings["residual"], residual_offset = residual.rows(first, end)
    low.dispatch(
        "conv2d",
        {**bindings, "y": y_window},
        source=kernel.source,
        when=when,
        options={
            "weights": kernel.kind,
            "bias": kernel.bias is not None,
            "aligned": kernel.into % 4 == 0 and divisor(x.start) % 4 == 0,
            "norm": "none" if factors is None else "affine_silu" if factors.silu else "affine",
            "upsample": upsample,
            "residual": "none" if residual is None else "accumulate" if residual == y else "add",
        },
        constants={"IN_CHANNELS": kernel.into, "OUT_CHANNELS": kernel.out, "KERNEL_SIZE": kernel.size},
        uniforms={
            "height": x.height,
            "width": x.width,
            "x_first": reach[0],
            "x_offset": x_offset,
            "row_first": first,
            "rows": sub(end, first),
            "y_offset": y_offset,
            "y_first": first,
            "residual_offset": residual_offset,
            "residual_first": first,
        },
    )


def emit_pointwise(low: Lowering, kernel: Kernel, x: Picture, y: Picture) -> None:
    """The band's rows of y = kernel(x) for a 1x1 kernel, as a product of matrices."""
    x_window, x_offset = x.rows(FIRST, END)
    y_window, y_offset = y.rows(FIRST, END)
    low.dispatch(
        "linear",
        {"x": x_window, **kernel.tensors(), "y": y_window},
        source=kernel.source,
        options={
            "weights": kernel.kind,
            "bias": kernel.bias is not None,
            "aligned": kernel.into % 4 == 0 and divisor(x.start) % 4 == 0,
            "epilogue": "none",
        },
        constants={"N": kernel.out, "K": kernel.into, "GROUP": 128},
        uniforms={
            "rows": mul(ROWS, x.width),
            "x_offset": x_offset,
            "x_stride": kernel.into,
            **NO_EPILOGUE,
            "y_offset": y_offset,
            "y_stride": kernel.out,
        },
    )


def emit_copy(
    low: Lowering, x: Picture, y: Picture, rows: tuple[Expression, Expression], when: Expression, source: str
) -> None:
    """Rows of y become those of x."""
    x_window, x_offset = x.rows(*rows)
    y_window, y_offset = y.rows(*rows)
    sizes = {"d0": mul(sub(rows[1], rows[0]), x.row), **{f"d{axis}": 1 for axis in range(1, 6)}}
    strides = {f"{name}_s{axis}": int(axis == 0) for name in "xy" for axis in range(6)}
    low.dispatch(
        "unary",
        {"x": x_window, "y": y_window},
        source=source,
        when=when,
        options={"op": "identity", "rank": 1},
        uniforms={**sizes, "x_offset": x_offset, "y_offset": y_offset, **strides},
    )
