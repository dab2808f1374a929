"""Norms over rows, norm and rotation of heads, attention."""

from __future__ import annotations

import onnx_ir as ir
import sympy

from exporter.lower.lowering import Lowering
from exporter.lower.operators.common import refuse, row_result
from exporter.lower.sizes import shape_of
from exporter.lower.views import View
from exporter.passes.fuse_modulation import plain_layer_norm
from exporter.passes.match import attribute, constant


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
            raise refuse(node, "a stored weight and the last axis expected")
        affine = "weight"
        bindings["weight"] = node.inputs[1].name
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            affine, bindings["bias"] = "weight_bias", node.inputs[2].name
    y, y_stride = row_result(low, target, columns)
    low.dispatch(
        "layer_norm",
        {**bindings, "y": y},
        options={"affine": affine, "modulate": modulated},
        constants={"COLUMNS": columns, "EPS": attribute(node, "epsilon", 1e-5)},
        source=node.name or target.name,
        uniforms={
            "rows": x.shape[0],
            "x_offset": x.offset,
            "x_stride": x_stride,
            **uniforms,
            "y_offset": y.offset,
            "y_stride": y_stride,
        },
    )


def rms_norm(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    columns = shape_of(target)[-1]
    x, x_stride = low.rows(low.view(node.inputs[0]), columns, node.inputs[0].name)
    y, y_stride = row_result(low, target, columns)
    low.dispatch(
        "rms_norm",
        {"x": x, "weight": node.inputs[1].name, "y": y},
        source=node.name or target.name,
        constants={"COLUMNS": columns, "EPS": attribute(node, "epsilon", 1e-5)},
        uniforms={
            "rows": x.shape[0],
            "x_offset": x.offset,
            "x_stride": x_stride,
            "y_offset": y.offset,
            "y_stride": y_stride,
        },
    )


def norm_rotary(low: Lowering, node: ir.Node) -> None:
    x_value, weight, cos, sin = node.inputs
    heads, size = (int(s) for s in shape_of(x_value)[-2:])
    x, x_stride, x_head = low.heads(low.view(x_value), heads, size, x_value.name)
    target = node.outputs[0]
    y = low.result(target)
    split = y.reshape((x.shape[0], sympy.Integer(heads), sympy.Integer(size)))
    if split is None:
        raise refuse(node, "a result in rows of heads expected")
    tables = [low.view(v) for v in (cos, sin)]
    if not all(t.is_contiguous() for t in tables) or tables[0].offset != tables[1].offset:
        raise refuse(node, "rotary tables without gaps expected")
    low.dispatch(
        "rms_norm_rotary",
        {"x": x, "weight": weight.name, "cos": tables[0], "sin": tables[1], "y": split},
        options={"layout": "interleaved" if attribute(node, "interleaved", 0) else "half"},
        constants={"HEADS": sympy.Integer(heads), "HEAD_SIZE": sympy.Integer(size), "EPS": attribute(node, "epsilon")},
        uniforms={
            "tokens": x.shape[0],
            "x_offset": x.offset,
            "x_stride": x_stride,
            "x_head_stride": x_head,
            "table_row": sympy.cancel(tables[0].offset / sympy.Rational(size, 2)),
            "y_offset": split.offset,
            "y_stride": split.strides[0],
            "y_head_stride": split.strides[1],
        },
        source=node.name or target.name,
    )


def attention(low: Lowering, node: ir.Node) -> None:
    heads, kv_heads = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    if heads is None or kv_heads is None or attribute(node, "softcap", 0) not in (0, None):
        raise refuse(node, "three-axis operands with head counts and no softcap expected")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    causal = bool(attribute(node, "is_causal", 0))
    if causal != (mask is not None):
        raise refuse(node, "either no mask, or a causal one with a mask over keys expected")
    target = node.outputs[0]
    size = int(shape_of(node.inputs[0])[-1]) // heads
    bindings, uniforms = {}, {}
    for name, value, count in (
        ("q", node.inputs[0], heads),
        ("k", node.inputs[1], kv_heads),
        ("v", node.inputs[2], kv_heads),
    ):
        view, stride, head_stride = low.heads(low.view(value), count, size, value.name)
        bindings[name] = view
        uniforms |= {f"{name}_offset": view.offset, f"{name}_stride": stride, f"{name}_head_stride": head_stride}
    tokens = {"q_tokens": bindings["q"].shape[0], "kv_tokens": bindings["k"].shape[0]}
    if mask is not None:
        keys = low.view(mask)
        if keys.offset != 0 or any(stride != 0 for _, stride in keys.axes()[:-1]) or keys.axes()[-1][1] != 1:
            raise refuse(node, "one mask value a key, the same for every query, expected")
        bindings["key_mask"] = keys
    y = low.result(target)
    split = y.reshape((tokens["q_tokens"], sympy.Integer(heads), sympy.Integer(size)))
    if split is None:
        raise refuse(node, "a result in rows of heads expected")
    scale = attribute(node, "scale")
    low.dispatch(
        "attention",
        {**bindings, "y": split},
        options={"mask": "causal" if causal else "none"},
        constants={
            "HEADS": sympy.Integer(heads),
            "KV_HEADS": sympy.Integer(kv_heads),
            "HEAD_SIZE": sympy.Integer(size),
            "SCALE": float(scale if scale is not None else size**-0.5),
        },
        uniforms={
            **tokens,
            **uniforms,
            "y_offset": split.offset,
            "y_stride": split.strides[0],
            "y_head_stride": split.strides[1],
        },
        source=node.name or target.name,
    )
