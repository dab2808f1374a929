"""Norms over rows, norm and rotation of heads, attention."""

from __future__ import annotations

import onnx_ir as ir
import sympy

from exporter.lower.lowering import Lowering
from exporter.lower.operators.common import head_result, refuse, row_result
from exporter.lower.sizes import shape_of
from exporter.lower.views import View
from exporter.passes.fuse_modulation import plain_layer_norm
from exporter.passes.match import attribute, constant


def layer_norm(low: Lowering, node: ir.Node) -> None:
    modulated = node.op_type == "ModulatedNorm"
    target = node.outputs[0]
    columns = shape_of(target)[-1]
    x = low.rows(low.view(node.inputs[0]), columns, node.inputs[0].name)
    bindings: dict[str, View | str] = {"x": x.view}
    rows = {"scale_offset": sympy.Integer(0), "shift_offset": sympy.Integer(0)}
    affine = "none"
    if modulated:
        for name, value in (("scale", node.inputs[1]), ("shift", node.inputs[2])):
            bindings[name] = low.rows(low.view(value), columns, value.name).view
            rows[f"{name}_offset"] = bindings[name].offset
    elif not plain_layer_norm(node):
        if constant(node.inputs[1]) is not None or attribute(node, "axis", -1) not in (-1, len(shape_of(target)) - 1):
            raise refuse(node, "a stored weight and the last axis expected")
        affine = "weight"
        bindings["weight"] = node.inputs[1].name
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            affine, bindings["bias"] = "weight_bias", node.inputs[2].name
    y = row_result(low, target, columns)
    low.dispatch(
        "layer_norm",
        {**bindings, "y": y.view},
        options={"affine": affine, "modulate": modulated},
        constants={"COLUMNS": columns, "EPS": attribute(node, "epsilon", 1e-5)},
        source=node.name or target.name,
        uniforms={"rows": x.view.shape[0], **x.uniforms("x"), **rows, **y.uniforms("y")},
    )


def rms_norm(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    columns = shape_of(target)[-1]
    x = low.rows(low.view(node.inputs[0]), columns, node.inputs[0].name)
    y = row_result(low, target, columns)
    low.dispatch(
        "rms_norm",
        {"x": x.view, "weight": node.inputs[1].name, "y": y.view},
        source=node.name or target.name,
        constants={"COLUMNS": columns, "EPS": attribute(node, "epsilon", 1e-5)},
        uniforms={"rows": x.view.shape[0], **x.uniforms("x"), **y.uniforms("y")},
    )


def norm_rotary(low: Lowering, node: ir.Node) -> None:
    x_value, weight, *tables = node.inputs
    heads, size = (int(s) for s in shape_of(x_value)[-2:])
    x = low.heads(low.view(x_value), heads, size, x_value.name)
    y = head_result(low, node, x.view.shape[0], heads, size)
    cos, sin = (low.view(table) for table in tables)
    if not cos.is_contiguous() or not sin.is_contiguous() or cos.offset != sin.offset:
        raise refuse(node, "rotary tables without gaps expected")
    low.dispatch(
        "rms_norm_rotary",
        {"x": x.view, "weight": weight.name, "cos": cos, "sin": sin, "y": y.view},
        options={"layout": "interleaved" if attribute(node, "interleaved", 0) else "half"},
        constants={"HEADS": sympy.Integer(heads), "HEAD_SIZE": sympy.Integer(size), "EPS": attribute(node, "epsilon")},
        uniforms={
            "tokens": x.view.shape[0],
            **x.uniforms("x"),
            "table_row": sympy.cancel(cos.offset / sympy.Rational(size, 2)),
            **y.uniforms("y"),
        },
        source=node.name or node.outputs[0].name,
    )


def attention(low: Lowering, node: ir.Node) -> None:
    heads, kv_heads = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    if heads is None or kv_heads is None or attribute(node, "softcap", 0) not in (0, None):
        raise refuse(node, "three-axis operands with head counts and no softcap expected")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    causal = bool(attribute(node, "is_causal", 0))
    if causal != (mask is not None):
        raise refuse(node, "either no mask, or a causal one with a mask over keys expected")
    size = int(shape_of(node.inputs[0])[-1]) // heads
    q, k, v = (
        low.heads(low.view(value), count, size, value.name)
        for value, count in zip(node.inputs[:3], (heads, kv_heads, kv_heads), strict=True)
    )
    bindings = {"q": q.view, "k": k.view, "v": v.view}
    if mask is not None:
        bindings["key_mask"] = _one_value_a_key(node, low.view(mask))
    tokens = {"q_tokens": q.view.shape[0], "kv_tokens": k.view.shape[0]}
    y = head_result(low, node, tokens["q_tokens"], heads, size)
    scale = attribute(node, "scale")
    low.dispatch(
        "attention",
        {**bindings, "y": y.view},
        options={"mask": "causal" if causal else "none"},
        constants={
            "HEADS": sympy.Integer(heads),
            "KV_HEADS": sympy.Integer(kv_heads),
            "HEAD_SIZE": sympy.Integer(size),
            "SCALE": float(scale if scale is not None else size**-0.5),
        },
        uniforms={**tokens, **q.uniforms("q"), **k.uniforms("k"), **v.uniforms("v"), **y.uniforms("y")},
        source=node.name or node.outputs[0].name,
    )


def _one_value_a_key(node: ir.Node, mask: View) -> View:
    *outer, (_, inner_stride) = mask.axes() or [(1, 1)]
    if mask.offset != 0 or any(stride != 0 for _, stride in outer) or inner_stride != 1:
        raise refuse(node, "one mask value a key, the same for every query, expected")
    return mask
