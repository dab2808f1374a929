"""Operators on pictures, stored height, width, channels, computed band by band (exporter/lower/bands.py)."""

from __future__ import annotations

import onnx_ir as ir

from exporter.lower.bands import END, FIRST, ROWS, band_rows, most, mul
from exporter.lower.lowering import Lowering
from exporter.lower.operators.banded import (
    Norm,
    emit_conv,
    emit_pointwise,
    norm_factors,
    picture,
    stored_kernel,
)
from exporter.lower.operators.common import padded, refuse
from exporter.passes.match import attribute


def conv(low: Lowering, node: ir.Node) -> None:
    """The fused convolution (exporter/passes/fuse_conv.py)."""
    x_value, weight, bias, *norm, residual_value = padded(node, 6)
    kernel = stored_kernel(node, weight, bias)
    kind, upsample = attribute(node, "norm"), bool(attribute(node, "upsample"))
    x_view = low.image(low.view(x_value), x_value.name)
    x = picture(low, x_view)
    residual, y_view = None, None
    if residual_value is not None:
        view = low.image(low.view(residual_value), residual_value.name)
        residual = picture(low, view)
        own = view.operand != x_view.operand and node.outputs[0].name not in low.outputs
        if own and low.is_last_use(view, node):
            y_view = low.views[node.outputs[0].name] = view
    y = picture(low, y_view or low.result(node.outputs[0], (0, 2, 3, 1)))
    factors = None
    if kind != "none":
        factors = norm_factors(low, Norm.of(node, *norm), x, kind == "affine_silu", kernel.source)
    row = most(y.row, mul(y.width, kernel.into))
    with low.loop(y.height, band_rows(y.height, row, 2 * kernel.half)):
        if kernel.size == 1 and factors is None and not upsample and residual is None:
            emit_pointwise(low, kernel, x, y)
        else:
            emit_conv(low, kernel, x, y, factors=factors, upsample=upsample, residual=residual)


def refuse_conv(low: Lowering, node: ir.Node) -> None:
    raise refuse(node, "an odd square kernel with stride 1, no groups and padding to the same size expected")


def refuse_resize(low: Lowering, node: ir.Node) -> None:
    raise refuse(node, "nearest-neighbour doubling of height and width, for one convolution alone, expected")


def group_norm(low: Lowering, node: ir.Node) -> None:
    """A norm that no convolution takes in."""
    target = node.outputs[0]
    name = node.name or target.name
    x = picture(low, low.image(low.view(node.inputs[0]), node.inputs[0].name))
    silu = node.op_type == "GroupNormSilu"
    factors = norm_factors(low, Norm.of(node, *node.inputs[1:3]), x, silu, name)
    y = picture(low, low.result(target, (0, 2, 3, 1)))
    with low.loop(x.height, band_rows(x.height, x.row)):
        (x_window, x_offset), (y_window, y_offset) = x.rows(FIRST, END), y.rows(FIRST, END)
        low.dispatch(
            "group_norm",
            {"x": x_window, "scale": factors.scale, "shift": factors.shift, "y": y_window},
            options={"silu": silu},
            source=name,
            constants={"CHANNELS": x.channels},
            uniforms={"pixels": mul(ROWS, x.width), "x_offset": x_offset, "y_offset": y_offset},
        )


def latents_unpack(low: Lowering, node: ir.Node) -> None:
    latents, std, mean = node.inputs
    x = low.view(latents)
    if not x.is_contiguous():
        x = low.materialize(x, f"{latents.name}/copy")
    y = low.result(node.outputs[0], (0, 2, 3, 1))
    low.dispatch(
        "latents_unpack",
        {"x": x, "deviation": std.name, "mean": mean.name, "y": y},
        source=node.name,
        constants={"CHANNELS": y.shape[1]},
        uniforms={"rows": x.shape[1], "columns": x.shape[2], "x_offset": x.offset, "y_offset": y.offset},
    )
