"""layer_norm(x)·(1 + scale) + shift becomes `ModulatedNorm`; scale and shift are single rows, for all tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.passes.match import attribute, constant, is_row, is_scalar, only_user, producer, replace


def _one_plus(value: ir.Value) -> ir.Value | None:
    """`scale` if value is 1 + scale, seen through an Unsqueeze."""
    unsqueeze = producer(value, "Unsqueeze")
    add = producer(unsqueeze.inputs[0] if unsqueeze is not None else value, "Add")
    if add is None:
        return None
    for scale, one in (add.inputs, add.inputs[::-1]):
        if is_scalar(one, 1.0):
            return scale
    return None


def plain_layer_norm(node: ir.Node | None) -> bool:
    """LayerNormalization over the last axis whose weight is all ones and that has no bias."""
    if node is None or attribute(node, "axis", -1) != -1 or (len(node.inputs) > 2 and node.inputs[2] is not None):
        return False
    weight = constant(node.inputs[1])
    return weight is not None and bool(np.all(weight == 1))


def fuse_modulation(model: ir.Model) -> None:
    graph = model.graph
    for norm in [n for n in graph if n.op_type == "LayerNormalization" and plain_layer_norm(n)]:
        product = only_user(norm.outputs[0], "Mul")
        total = only_user(product.outputs[0], "Add") if product is not None else None
        if total is None:
            continue
        scale = _one_plus(next(i for i in product.inputs if i is not norm.outputs[0]))
        shift = next(i for i in total.inputs if i is not product.outputs[0])
        if scale is None or not is_row(scale) or not is_row(shift):
            continue
        replace(
            graph, total, "ModulatedNorm", [norm.inputs[0], scale, shift], {"epsilon": attribute(norm, "epsilon", 1e-5)}
        )
        graph.remove(product, safe=True)
        graph.remove(norm, safe=True)
