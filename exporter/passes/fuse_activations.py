"""x·sigmoid(x) becomes `Silu`; silu(gate)·up becomes `SwiGLU`; silu(group_norm(x)) `GroupNormSilu`."""

from __future__ import annotations

import onnx_ir as ir

from exporter.passes.match import FUSED, attribute, only_user, producer, replace


def fuse_activations(model: ir.Model) -> None:
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Mul" and node.domain == "":
            for sigmoid_side in (0, 1):
                sigmoid = producer(node.inputs[sigmoid_side], "Sigmoid")
                x = node.inputs[1 - sigmoid_side]
                if sigmoid is not None and sigmoid.inputs[0] is x:
                    replace(graph, node, "Silu", [x])
                    if not sigmoid.outputs[0].uses():
                        graph.remove(sigmoid, safe=True)
                    break
    for node in [n for n in graph if n.op_type == "Silu" and n.domain == FUSED]:
        norm = producer(node.inputs[0], "GroupNormalization")
        if norm is not None and len(norm.outputs[0].uses()) == 1:
            attributes = {name: attribute(norm, name) for name in ("num_groups", "epsilon")}
            replace(graph, node, "GroupNormSilu", list(norm.inputs), attributes, name=norm.name)
            graph.remove(norm, safe=True)
            continue
        product = only_user(node.outputs[0], "Mul")
        if product is not None and str(product.inputs[0].shape) == str(product.inputs[1].shape):
            up = next(i for i in product.inputs if i is not node.outputs[0])
            replace(graph, product, "SwiGLU", [node.inputs[0], up])
            graph.remove(node, safe=True)
