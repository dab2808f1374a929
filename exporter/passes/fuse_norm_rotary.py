"""RMS norm over each head followed by a rotation becomes `NormRotary`.

Handles the two ways in which the models reshape between them: (1) norm on [1, tokens, heads, size],
Reshape to [1, tokens, heads·size], rotate; (2) norm on [1, tokens, heads, size], Transpose to
[1, heads, tokens, size], rotate.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.passes.match import attribute, producer, replace


def fuse_norm_rotary(model: ir.Model) -> None:
    graph = model.graph
    for rotary in [n for n in graph if n.op_type == "RotaryEmbedding"]:
        between = producer(rotary.inputs[0], "Reshape") or producer(rotary.inputs[0], "Transpose")
        norm = producer(between.inputs[0], "RMSNormalization") if between is not None else None
        if norm is None or len(between.outputs[0].uses()) != 1 or len(norm.outputs[0].uses()) != 1:
            continue
        inputs = [norm.inputs[0], norm.inputs[1], rotary.inputs[1], rotary.inputs[2]]
        attributes = {"interleaved": attribute(rotary, "interleaved", 0), "epsilon": attribute(norm, "epsilon", 1e-5)}
        if between.op_type == "Transpose":
            fused = ir.node("NormRotary", inputs, attributes, domain="bitbrush.fused", name=norm.name)
            fused.outputs[0].shape, fused.outputs[0].type = norm.outputs[0].shape, norm.outputs[0].type
            fused.outputs[0].name = f"{norm.outputs[0].name}/rotated"
            graph.insert_before(rotary, fused)
            rotated = ir.node("Transpose", [fused.outputs[0]], {"perm": [0, 2, 1, 3]})
            _take_over(graph, rotary, rotated)
        else:
            replace(graph, rotary, "NormRotary", inputs, attributes, name=norm.name)
        graph.remove(between, safe=True)
        graph.remove(norm, safe=True)


def _take_over(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    result, target = old.outputs[0], new.outputs[0]
    target.shape, target.type = result.shape, result.type
    graph.insert_before(old, new)
    for user, index in list(result.uses()):
        user.replace_input_with(index, target)
    label = result.name
    graph.remove(old, safe=True)
    result.name, target.name = None, label
