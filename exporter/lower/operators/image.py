"""Operators on pictures, stored height, width, channels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import sympy

from exporter.lower.lowering import Lowering, aligned
from exporter.lower.operators.common import refuse
from exporter.lower.operators.matmul import emit_linear
from exporter.lower.sizes import product
from exporter.lower.views import Rows, View
from exporter.passes.fuse_linear import stored_weight
from exporter.passes.match import attribute, constant, producer

GROUP_NORM_CHUNKS = 64


def _stored_conv(node: ir.Node) -> tuple[ir.Value, tuple[int, ...]]:
    """The initializer [out, height, width, in] of a convolution and the ONNX shape of its weight."""
    order = producer(node.inputs[1], "Transpose")
    weight = (
        stored_weight(order.inputs[0]) if order is not None and list(attribute(order, "perm")) == [0, 3, 1, 2] else None
    )
    if weight is None:
        raise refuse(node, "a stored weight expected")
    out, height, width, channels = (int(s) for s in weight.shape)
    return weight, (out, channels, height, width)


def _pixel_rows(image: View) -> Rows:
    """An image [1, C, H, W] without gaps as rows [pixels, C]."""
    channels = image.shape[1]
    return Rows(View.contiguous(image.operand, (product(image.shape[2:]), channels), image.offset), channels)


def conv(low: Lowering, node: ir.Node) -> None:
    weight, (out, channels, height, width) = _stored_conv(node)
    pads = list(attribute(node, "pads", [0, 0, 0, 0]))
    plain = list(attribute(node, "strides", [1, 1])) == [1, 1] and list(attribute(node, "dilations", [1, 1])) == [1, 1]
    if not plain or attribute(node, "group", 1) != 1 or height != width or height % 2 == 0 or pads != [height // 2] * 4:
        raise refuse(node, "an odd square kernel with stride 1, no groups and padding to the same size expected")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    target = node.outputs[0]
    x = low.image(low.view(node.inputs[0]), node.inputs[0].name)
    y = low.result(target, (0, 2, 3, 1))
    kind = "f16" if weight.dtype == ir.DataType.FLOAT16 else "f32"
    source = weight.name.removesuffix(".weight")
    if height == 1:
        emit_linear(low, source, _pixel_rows(x), _pixel_rows(y), (kind, {"weight": weight.name}), 0, bias)
        return
    bindings = {"x": x, "weight": weight.name} | ({"bias": bias.name} if bias is not None else {})
    low.dispatch(
        "conv2d",
        {**bindings, "y": y},
        source=source,
        options={"weights": kind, "bias": bias is not None, "aligned": aligned(sympy.Integer(channels), x.offset)},
        constants={
            "IN_CHANNELS": sympy.Integer(channels),
            "OUT_CHANNELS": sympy.Integer(out),
            "KERNEL_SIZE": sympy.Integer(height),
        },
        uniforms={"height": x.shape[2], "width": x.shape[3], "x_offset": x.offset, "y_offset": y.offset},
    )


def group_norm(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    x = low.image(low.view(node.inputs[0]), node.inputs[0].name)
    channels, pixels = x.shape[1], product(x.shape[2:])
    groups = attribute(node, "num_groups")
    name = node.name or target.name
    stats = low.allocate(f"{target.name}/stats", (sympy.Integer(groups * GROUP_NORM_CHUNKS * 2),))
    shared = {"CHANNELS": channels, "GROUPS": sympy.Integer(groups), "CHUNKS": sympy.Integer(GROUP_NORM_CHUNKS)}
    low.dispatch(
        "group_norm_stats",
        {"x": x, "stats": stats},
        constants=shared,
        source=name,
        uniforms={"pixels": pixels, "x_offset": x.offset},
    )
    y = low.result(target, (0, 2, 3, 1))
    low.dispatch(
        "group_norm",
        {"x": x, "stats": stats, "weight": node.inputs[1].name, "bias": node.inputs[2].name, "y": y},
        options={"silu": node.op_type == "GroupNormSilu"},
        source=name,
        constants={**shared, "EPS": attribute(node, "epsilon", 1e-5)},
        uniforms={"pixels": pixels, "x_offset": x.offset, "y_offset": y.offset},
    )


def resize(low: Lowering, node: ir.Node) -> None:
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if attribute(node, "mode") != "nearest" or scales is None or not np.array_equal(scales, [1, 1, 2, 2]):
        raise refuse(node, "nearest-neighbour doubling of height and width expected")
    x = low.image(low.view(node.inputs[0]), node.inputs[0].name)
    y = low.result(node.outputs[0], (0, 2, 3, 1))
    low.dispatch(
        "upsample_nearest",
        {"x": x, "y": y},
        constants={"CHANNELS": x.shape[1]},
        source=node.outputs[0].name,
        uniforms={"height": x.shape[2], "width": x.shape[3], "x_offset": x.offset, "y_offset": y.offset},
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
