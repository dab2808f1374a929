"""A doubling convolution whose result only a norm with its convolution and a shortcut read becomes one node.

u = conv(double(x)), h = conv1(norm(u)), s = shortcut(u) -> `Upsampled`: inputs x; weight and bias of u; weight,
bias, norm weight and norm bias of h; weight and bias of s. Outputs h, s. The lowering may then compute u band
by band and never hold it: it is the largest picture of a decoder, and the only one with a shortcut.

Requires: fuse_conv.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.passes.match import FUSED, attribute


def split_upsampled(model: ir.Model) -> None:
    graph = model.graph
    for up in [n for n in graph if n.op_type == "Conv" and n.domain == FUSED and attribute(n, "upsample")]:
        users = [user for user, _ in up.outputs[0].uses()]
        first = next((user for user in users if _reads(user) and attribute(user, "norm") != "none"), None)
        shortcut = next((user for user in users if _reads(user) and _is_shortcut(user)), None)
        if len(users) != 2 or first is None or shortcut is None or up.inputs[5] is not None:
            continue
        if not any(n.outputs[0].is_graph_output() for n in (up, first, shortcut)):
            _replace(graph, up, first, shortcut)


def _reads(node: ir.Node) -> bool:
    """Whether a convolution takes its x as it is and adds nothing to its result."""
    plain = node.op_type == "Conv" and node.domain == FUSED
    return plain and not attribute(node, "upsample") and node.inputs[5] is None


def _is_shortcut(node: ir.Node) -> bool:
    return attribute(node, "norm") == "none" and [int(size) for size in list(node.inputs[1].shape)[2:]] == [1, 1]


def _replace(graph: ir.Graph, up: ir.Node, first: ir.Node, shortcut: ir.Node) -> None:
    inputs = [*up.inputs[:3], *first.inputs[1:5], *shortcut.inputs[1:3]]
    facts = {name: attribute(first, name) for name in ("norm", "num_groups", "epsilon") if name in first.attributes}
    places = {node: index for index, node in enumerate(graph)}
    later = max(first, shortcut, key=places.__getitem__)
    node = ir.node("Upsampled", inputs, facts, num_outputs=2, domain=FUSED, name=up.name)
    graph.insert_before(later, node)
    for old, new in zip((first.outputs[0], shortcut.outputs[0]), node.outputs, strict=True):
        label, new.shape, new.type = old.name, old.shape, old.type
        for user, index in list(old.uses()):
            user.replace_input_with(index, new)
        old.name = None
        new.name = label
    for old in (first, shortcut, up):
        graph.remove(old, safe=True)
