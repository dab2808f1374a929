"""ONNX operator -> dispatches. One function an operator; `OPERATORS` is the list of what is known.

Layout operators only make views. Everything else reads views and writes where `Lowering.result` says.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import sympy

from exporter.errors import BadBundle
from exporter.lower.lowering import Lowering, aligned
from exporter.lower.sizes import product, shape_of
from exporter.lower.views import View
from exporter.passes.fuse_linear import stored_weight
from exporter.passes.fuse_modulation import plain_layer_norm
from exporter.passes.match import attribute, constant, producer

GROUP_NORM_CHUNKS = 64


def _refuse(node: ir.Node, what: str) -> BadBundle:
    return BadBundle(f"{node.op_type} at {node.name or node.outputs[0].name}: {what}")


# layout -------------------------------------------------------------------------------------------


def reshape(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    view = low.view(node.inputs[0])
    shaped = view.reshape(shape_of(target))
    if shaped is None:
        shaped = low.materialize(view, f"{target.name}/copy").reshape(shape_of(target))
    low.views[target.name] = shaped


def transpose(low: Lowering, node: ir.Node) -> None:
    low.views[node.outputs[0].name] = low.view(node.inputs[0]).transpose(list(attribute(node, "perm")))


def slice_(low: Lowering, node: ir.Node) -> None:
    x, target = low.view(node.inputs[0]), node.outputs[0]
    starts, axes, steps = (low.integers(i) for i in (node.inputs[1], *node.inputs[3:5]))
    if starts is None or axes is None or (steps is not None and any(step != 1 for step in steps)):
        raise _refuse(node, "starts and axes that follow from sizes, and steps of 1, expected")
    for axis_size, start in zip(axes, starts, strict=True):
        axis = int(axis_size) % len(x.shape)
        if start.is_negative:
            start = start + x.shape[axis]
        x = x.slice(axis, start, shape_of(target)[axis])
    low.views[target.name] = x


def split(low: Lowering, node: ir.Node) -> None:
    x = low.view(node.inputs[0])
    axis = attribute(node, "axis", 0) % len(x.shape)
    start = sympy.Integer(0)
    for target in node.outputs:
        size = shape_of(target)[axis]
        low.views[target.name] = x.slice(axis, start, size)
        start = start + size


def concat(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    axis = attribute(node, "axis") % len(shape_of(target))
    whole = low.whole.get(target.name) or low.result(target)
    low.views[target.name] = whole
    start = sympy.Integer(0)
    for value in node.inputs:
        size = shape_of(value)[axis]
        part, view = whole.slice(axis, start, size), low.view(value)
        if (view.operand, view.offset) != (part.operand, part.offset):
            low.unary("identity", view, part, f"{target.name}/{value.name}")
        start = sympy.expand(start + size)


def expand(low: Lowering, node: ir.Node) -> None:
    low.views[node.outputs[0].name] = low.view(node.inputs[0]).expand(shape_of(node.outputs[0]))


# pointwise ----------------------------------------------------------------------------------------


def unary(op: str) -> Callable[[Lowering, ir.Node], None]:
    def lower(low: Lowering, node: ir.Node) -> None:
        x = low.view(node.inputs[0])
        if len(x.shape) == 4:
            x = low.image(x, node.outputs[0].name)
        low.unary(op, x, low.result(node.outputs[0], _image_order(x)), node.name or node.outputs[0].name)

    return lower


def binary(op: str) -> Callable[[Lowering, ir.Node], None]:
    def lower(low: Lowering, node: ir.Node) -> None:
        a, b = (low.view(i) for i in node.inputs)
        y = low.result(node.outputs[0], _image_order(a))
        low.binary(op, a, b, y, node.name or node.outputs[0].name)

    return lower


def _image_order(x: View) -> tuple[int, ...] | None:
    """Results of work on pictures are pictures: height, width, channels."""
    is_image = len(x.shape) == 4 and not x.is_contiguous() and x.transpose([0, 2, 3, 1]).is_contiguous()
    return (0, 2, 3, 1) if is_image else None


def swiglu(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    columns = shape_of(target)[-1]
    (gate, gate_stride), (up, up_stride) = (low.rows(low.view(i), columns, i.name) for i in node.inputs)
    y, y_stride = _row_result(low, target, columns)
    low.dispatch("swiglu", {"gate": gate, "up": up, "y": y}, constants={"COLUMNS": columns}, source=target.name,
                 uniforms={"rows": gate.shape[0], "gate_offset": gate.offset, "gate_stride": gate_stride,
                           "up_offset": up.offset, "up_stride": up_stride, "y_offset": y.offset, "y_stride": y_stride})


def gate_residual(low: Lowering, node: ir.Node) -> None:
    residual_value, gate_value, x_value = node.inputs
    target = node.outputs[0]
    columns = shape_of(target)[-1]
    residual, residual_stride = low.rows(low.view(residual_value), columns, residual_value.name)
    gate, _ = low.rows(low.view(gate_value), columns, gate_value.name)
    x, x_stride = low.rows(low.view(x_value), columns, x_value.name)
    y, y_stride = _row_result(low, target, columns)
    low.dispatch("gate_residual", {"residual": residual, "gate": gate, "x": x, "y": y},
                 constants={"COLUMNS": columns}, source=target.name,
                 uniforms={"rows": x.shape[0], "residual_offset": residual.offset, "residual_stride": residual_stride,
                           "gate_offset": gate.offset, "x_offset": x.offset, "x_stride": x_stride,
                           "y_offset": y.offset, "y_stride": y_stride})


def _row_result(low: Lowering, target: ir.Value, columns) -> tuple[View, sympy.Expr]:
    """Where rows of `target` go; a part of a concatenation must be writable row by row."""
    view = low.result(target)
    flat = view.reshape((sympy.expand(sympy.cancel(product(view.shape) / columns)), columns))
    if flat is None or flat.strides[1] != 1:
        raise BadBundle(f"{target.name}: a result in rows expected")
    return flat, flat.strides[0] if flat.shape[0] != 1 else columns


# matrix products ----------------------------------------------------------------------------------


def linear(low: Lowering, node: ir.Node) -> None:
    kind, group = attribute(node, "kind"), attribute(node, "group")
    count = attribute(node, "parts")
    parts = list(node.inputs[1 : 1 + count])
    bias = node.inputs[1 + count] if len(node.inputs) > 1 + count else None
    target = node.outputs[0]
    k, n = shape_of(node.inputs[0])[-1], shape_of(target)[-1]
    x, x_stride = low.rows(low.view(node.inputs[0]), k, node.inputs[0].name)
    y, y_stride = _row_result(low, target, n)
    emit_linear(low, node.name or target.name, x, x_stride, y, y_stride, k, n, _weights(kind, parts), group, bias)


def _weights(kind: str, parts: list[ir.Value]) -> tuple[str, dict[str, str]]:
    """(option `weights`, weight bindings) of a stored matrix."""
    if kind == "dense":
        return ("f16" if parts[0].dtype == ir.DataType.FLOAT16 else "f32"), {"weight": parts[0].name}
    return kind, dict(zip(("codes", "scales", "offsets"), (part.name for part in parts), strict=False))


def emit_linear(low: Lowering, source: str, x, x_stride, y, y_stride, k, n, weights, group: int, bias) -> None:
    kind, tensors = weights
    bindings = {"x": x, **tensors}
    if bias is not None:
        bindings["bias"] = bias.name
    options = {"weights": kind, "bias": bias is not None, "aligned": aligned(k, x.offset, x_stride)}
    low.dispatch("linear", {**bindings, "y": y}, options=options, source=source,
                 constants={"N": n, "K": k, "GROUP": group or 128},
                 uniforms={"rows": x.shape[0], "x_offset": x.offset, "x_stride": x_stride,
                           "y_offset": y.offset, "y_stride": y_stride})


def embedding(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    if node.op_type == "Gather":
        weight = stored_weight(node.inputs[0])
        if weight is None or attribute(node, "axis", 0) != 0:
            raise _refuse(node, "rows of a stored table expected")
        kind, tensors, group, ids = *_weights("dense", [weight]), 128, node.inputs[1]
    else:
        kind, group = node.op_type.removeprefix("Embedding").lower().split("g")
        kind, tensors = _weights(kind, list(node.inputs[:3]))
        group, ids = int(group), node.inputs[3]
    columns = shape_of(target)[-1]
    y, y_stride = _row_result(low, target, columns)
    low.dispatch("embedding", {"ids": low.view(ids), **tensors, "y": y}, options={"weights": kind}, source=target.name,
                 constants={"COLUMNS": columns, "GROUP": group},
                 uniforms={"rows": y.shape[0], "y_offset": y.offset, "y_stride": y_stride})


# norms, rotation, attention -----------------------------------------------------------------------


def layer_norm(low: Lowering, node: ir.Node) -> None:
    modulated = node.op_type == "ModulatedNorm"
    target = node.outputs[0]
    columns = shape_of(target)[-1]
    x, x_stride = low.rows(low.view(node.inputs[0]), columns, node.inputs[0].name)
    bindings: dict[str, View | str] = {"x": x}
    uniforms = {"scale_offset": 0, "shift_offset": 0}
    affine = "none"
    if modulated:
        for name, value in (("scale", node.inputs[1]), ("shift", node.inputs[2])):
            row, _ = low.rows(low.view(value), columns, value.name)
            bindings[name] = row
            uniforms[f"{name}_offset"] = row.offset
    elif not plain_layer_norm(node):
        if constant(node.inputs[1]) is not None or attribute(node, "axis", -1) not in (-1, len(x.shape)):
            raise _refuse(node, "a stored weight and the last axis expected")
        affine = "weight"
        bindings["weight"] = node.inputs[1].name
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            affine, bindings["bias"] = "weight_bias", node.inputs[2].name
    y, y_stride = _row_result(low, target, columns)
    low.dispatch("layer_norm", {**bindings, "y": y}, options={"affine": affine, "modulate": modulated},
                 constants={"COLUMNS": columns, "EPS": attribute(node, "epsilon", 1e-5)}, source=node.name or target.name,
                 uniforms={"rows": x.shape[0], "x_offset": x.offset, "x_stride": x_stride, **uniforms,
                           "y_offset": y.offset, "y_stride": y_stride})


def rms_norm(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    columns = shape_of(target)[-1]
    x, x_stride = low.rows(low.view(node.inputs[0]), columns, node.inputs[0].name)
    y, y_stride = _row_result(low, target, columns)
    low.dispatch("rms_norm", {"x": x, "weight": node.inputs[1].name, "y": y}, source=node.name or target.name,
                 constants={"COLUMNS": columns, "EPS": attribute(node, "epsilon", 1e-5)},
                 uniforms={"rows": x.shape[0], "x_offset": x.offset, "x_stride": x_stride,
                           "y_offset": y.offset, "y_stride": y_stride})


def norm_rotary(low: Lowering, node: ir.Node) -> None:
    x_value, weight, cos, sin = node.inputs
    heads, size = (int(s) for s in shape_of(x_value)[-2:])
    x, x_stride, x_head = low.heads(low.view(x_value), heads, size, x_value.name)
    target = node.outputs[0]
    y = low.result(target)
    split = y.reshape((x.shape[0], sympy.Integer(heads), sympy.Integer(size)))
    if split is None:
        raise _refuse(node, "a result in rows of heads expected")
    tables = [low.view(v) for v in (cos, sin)]
    if not all(t.is_contiguous() for t in tables) or tables[0].offset != tables[1].offset:
        raise _refuse(node, "rotary tables without gaps expected")
    low.dispatch("rms_norm_rotary", {"x": x, "weight": weight.name, "cos": tables[0], "sin": tables[1], "y": split},
                 options={"layout": "interleaved" if attribute(node, "interleaved", 0) else "half"},
                 constants={"HEADS": sympy.Integer(heads), "HEAD_SIZE": sympy.Integer(size), "EPS": attribute(node, "epsilon")},
                 uniforms={"tokens": x.shape[0], "x_offset": x.offset, "x_stride": x_stride, "x_head_stride": x_head,
                           "table_row": sympy.cancel(tables[0].offset / sympy.Rational(size, 2)), "y_offset": split.offset,
                           "y_stride": split.strides[0], "y_head_stride": split.strides[1]},
                 source=node.name or target.name)


def attention(low: Lowering, node: ir.Node) -> None:
    heads, kv_heads = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    if heads is None or kv_heads is None or attribute(node, "softcap", 0) not in (0, None):
        raise _refuse(node, "three-axis operands with head counts and no softcap expected")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    causal = bool(attribute(node, "is_causal", 0))
    if causal != (mask is not None):
        raise _refuse(node, "either no mask, or a causal one with a mask over keys expected")
    target = node.outputs[0]
    size = int(shape_of(node.inputs[0])[-1]) // heads
    bindings, uniforms = {}, {}
    for name, value, count in (("q", node.inputs[0], heads), ("k", node.inputs[1], kv_heads), ("v", node.inputs[2], kv_heads)):
        view, stride, head_stride = low.heads(low.view(value), count, size, value.name)
        bindings[name] = view
        uniforms |= {f"{name}_offset": view.offset, f"{name}_stride": stride, f"{name}_head_stride": head_stride}
    tokens = {"q_tokens": bindings["q"].shape[0], "kv_tokens": bindings["k"].shape[0]}
    if mask is not None:
        keys = low.view(mask)
        if keys.offset != 0 or any(stride != 0 for _, stride in keys.axes()[:-1]) or keys.axes()[-1][1] != 1:
            raise _refuse(node, "one mask value a key, the same for every query, expected")
        bindings["key_mask"] = keys
    y = low.result(target)
    split = y.reshape((tokens["q_tokens"], sympy.Integer(heads), sympy.Integer(size)))
    if split is None:
        raise _refuse(node, "a result in rows of heads expected")
    scale = attribute(node, "scale")
    low.dispatch("attention", {**bindings, "y": split}, options={"mask": "causal" if causal else "none"},
                 constants={"HEADS": sympy.Integer(heads), "KV_HEADS": sympy.Integer(kv_heads), "HEAD_SIZE": sympy.Integer(size),
                            "SCALE": float(scale if scale is not None else size**-0.5)},
                 uniforms={**tokens, **uniforms, "y_offset": split.offset, "y_stride": split.strides[0],
                           "y_head_stride": split.strides[1]},
                 source=node.name or target.name)


# pictures -----------------------------------------------------------------------------------------


def _stored_conv(node: ir.Node) -> tuple[ir.Value, tuple[int, ...]]:
    """The initializer [out, height, width, in] of a convolution and the ONNX shape of its weight."""
    order = producer(node.inputs[1], "Transpose")
    weight = stored_weight(order.inputs[0]) if order is not None and list(attribute(order, "perm")) == [0, 3, 1, 2] else None
    if weight is None:
        raise _refuse(node, "a stored weight expected")
    out, height, width, channels = (int(s) for s in weight.shape)
    return weight, (out, channels, height, width)


def conv(low: Lowering, node: ir.Node) -> None:
    weight, (out, channels, height, width) = _stored_conv(node)
    pads = list(attribute(node, "pads", [0, 0, 0, 0]))
    plain = list(attribute(node, "strides", [1, 1])) == [1, 1] and list(attribute(node, "dilations", [1, 1])) == [1, 1]
    if not plain or attribute(node, "group", 1) != 1 or height != width or height % 2 == 0 or pads != [height // 2] * 4:
        raise _refuse(node, "an odd square kernel with stride 1, no groups and padding to the same size expected")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    target = node.outputs[0]
    x = low.image(low.view(node.inputs[0]), node.inputs[0].name)
    y = low.result(target, (0, 2, 3, 1))
    kind = "f16" if weight.dtype == ir.DataType.FLOAT16 else "f32"
    source = weight.name.removesuffix(".weight")
    if height == 1:
        pixels = product(x.shape[2:])
        rows = View(x.operand, (pixels, x.shape[1]), (sympy.Integer(channels), sympy.Integer(1)), x.offset)
        out_rows = View(y.operand, (pixels, y.shape[1]), (sympy.Integer(out), sympy.Integer(1)), y.offset)
        emit_linear(low, source, rows, rows.strides[0], out_rows, out_rows.strides[0], sympy.Integer(channels),
                    sympy.Integer(out), (kind, {"weight": weight.name}), 0, bias)
        return
    bindings = {"x": x, "weight": weight.name} | ({"bias": bias.name} if bias is not None else {})
    low.dispatch("conv2d", {**bindings, "y": y}, source=source,
                 options={"weights": kind, "bias": bias is not None, "aligned": aligned(sympy.Integer(channels), x.offset)},
                 constants={"IN_CHANNELS": sympy.Integer(channels), "OUT_CHANNELS": sympy.Integer(out),
                            "KERNEL_SIZE": sympy.Integer(height)},
                 uniforms={"height": x.shape[2], "width": x.shape[3], "x_offset": x.offset, "y_offset": y.offset})


def group_norm(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    x = low.image(low.view(node.inputs[0]), node.inputs[0].name)
    channels, pixels = x.shape[1], product(x.shape[2:])
    groups = attribute(node, "num_groups")
    name = node.name or target.name
    stats = low.allocate(f"{target.name}/stats", (sympy.Integer(groups * GROUP_NORM_CHUNKS * 2),))
    shared = {"CHANNELS": channels, "GROUPS": sympy.Integer(groups), "CHUNKS": sympy.Integer(GROUP_NORM_CHUNKS)}
    low.dispatch("group_norm_stats", {"x": x, "stats": stats}, constants=shared, source=name,
                 uniforms={"pixels": pixels, "x_offset": x.offset})
    y = low.result(target, (0, 2, 3, 1))
    low.dispatch("group_norm", {"x": x, "stats": stats, "weight": node.inputs[1].name, "bias": node.inputs[2].name, "y": y},
                 options={"silu": node.op_type == "GroupNormSilu"}, source=name,
                 constants={**shared, "EPS": attribute(node, "epsilon", 1e-5)},
                 uniforms={"pixels": pixels, "x_offset": x.offset, "y_offset": y.offset})


def resize(low: Lowering, node: ir.Node) -> None:
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if attribute(node, "mode") != "nearest" or scales is None or not np.array_equal(scales, [1, 1, 2, 2]):
        raise _refuse(node, "nearest-neighbour doubling of height and width expected")
    x = low.image(low.view(node.inputs[0]), node.inputs[0].name)
    y = low.result(node.outputs[0], (0, 2, 3, 1))
    low.dispatch("upsample_nearest", {"x": x, "y": y}, constants={"CHANNELS": x.shape[1]}, source=node.outputs[0].name,
                 uniforms={"height": x.shape[2], "width": x.shape[3], "x_offset": x.offset, "y_offset": y.offset})


def latents_unpack(low: Lowering, node: ir.Node) -> None:
    latents, std, mean = node.inputs
    x = low.view(latents)
    if not x.is_contiguous():
        x = low.materialize(x, f"{latents.name}/copy")
    y = low.result(node.outputs[0], (0, 2, 3, 1))
    low.dispatch("latents_unpack", {"x": x, "deviation": std.name, "mean": mean.name, "y": y}, source=node.name,
                 constants={"CHANNELS": y.shape[1]},
                 uniforms={"rows": x.shape[1], "columns": x.shape[2], "x_offset": x.offset, "y_offset": y.offset})


OPERATORS: dict[tuple[str, str], Callable[[Lowering, ir.Node], None]] = {
    **{("", name): reshape for name in ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")},
    ("", "Transpose"): transpose, ("", "Slice"): slice_, ("", "Split"): split, ("", "Concat"): concat,
    ("", "Expand"): expand,
    **{("", name): unary(name.lower()) for name in ("Sigmoid", "Neg", "Exp", "Sqrt", "Reciprocal", "Tanh", "Sin", "Cos")},
    **{("", name): binary(name.lower()) for name in ("Add", "Sub", "Mul", "Div")},
    ("", "LayerNormalization"): layer_norm, ("", "RMSNormalization"): rms_norm, ("", "Attention"): attention,
    ("", "Gather"): embedding, ("", "Conv"): conv, ("", "GroupNormalization"): group_norm, ("", "Resize"): resize,
    ("bitbrush.fused", "Linear"): linear, ("bitbrush.fused", "Silu"): unary("silu"), ("bitbrush.fused", "SwiGLU"): swiglu,
    ("bitbrush.fused", "GateResidual"): gate_residual, ("bitbrush.fused", "ModulatedNorm"): layer_norm,
    ("bitbrush.fused", "NormRotary"): norm_rotary, ("bitbrush.fused", "GroupNormSilu"): group_norm,
    ("bitbrush.fused", "LatentsUnpack"): latents_unpack,
    **{("bitbrush", f"Embedding{kind}G{group}"): embedding for kind in ("Int4", "Int8") for group in (32, 64)},
}
WRITES_ROWS = {linear, swiglu, gate_residual, norm_rotary, attention, layer_norm, rms_norm, embedding}
