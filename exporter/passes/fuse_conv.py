"""Every Conv becomes the fused `Conv` with what stands before and after it.

Handles: (1) GroupNormalization or GroupNormSilu before, (2) Resize by 2 before, (3) an Add of something of
the same shape after, each where nothing else uses what lies between.
Ensures: no Conv with stride 1 and padding to the same size is left. Inputs of the fused one: x, weight, bias,
norm weight, norm bias, residual, None where it has none; attributes `norm` (none, affine, affine_silu),
`upsample` and those of its norm.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporter.passes.match import FUSED, attribute, constant, only_user, producer, replace

NORMS = {("", "GroupNormalization"): "affine", (FUSED, "GroupNormSilu"): "affine_silu"}


def fuse_conv(model: ir.Model) -> None:
    graph = model.graph
    for conv in [n for n in graph if n.op_type == "Conv" and n.domain == "" and keeps_size(n)]:
        x, weight, bias = (*conv.inputs, None)[:3]
        before = _before(x)
        norm: list[ir.Value | None] = [None, None]
        facts = {"norm": "none", "upsample": 0}
        if before is not None and before.op_type == "Resize":
            x, facts["upsample"] = before.inputs[0], 1
        elif before is not None:
            x, *norm = before.inputs
            facts["norm"] = NORMS[before.domain, before.op_type]
            facts |= {name: attribute(before, name) for name in ("num_groups", "epsilon") if name in before.attributes}
        replace(graph, conv, "Conv", [x, weight, bias, *norm, None], facts)
        if before is not None:
            graph.remove(before, safe=True)
    for add in [n for n in graph if n.op_type == "Add" and n.domain == ""]:
        _take_residual(graph, add)


def _before(x: ir.Value) -> ir.Node | None:
    """The norm or the doubling that computes `x` for its one user, if it is one."""
    node = x.producer()
    if node is None or len(x.uses()) != 1 or x.is_graph_output():
        return None
    if (node.domain, node.op_type) in NORMS:
        return node
    return node if node.op_type == "Resize" and is_doubling(node) else None


def keeps_size(conv: ir.Node) -> bool:
    """Whether a Conv has an odd square kernel, stride 1, no groups and padding to the same size."""
    *_, height, width = (int(size) for size in conv.inputs[1].shape)
    ones = [list(attribute(conv, name, [1, 1])) for name in ("strides", "dilations")] == [[1, 1]] * 2
    padded = list(attribute(conv, "pads", [0, 0, 0, 0])) == [height // 2] * 4
    return ones and padded and height == width and height % 2 == 1 and attribute(conv, "group", 1) == 1


def is_doubling(node: ir.Node) -> bool:
    """Whether a Resize repeats every row and column of an image once."""
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    nearest = attribute(node, "mode", "nearest") == "nearest"
    return nearest and scales is not None and np.array_equal(scales, [1, 1, 2, 2])


def _take_residual(graph: ir.Graph, add: ir.Node) -> None:
    """Conv and Add become one; of two convolutions the one with the larger kernel, as it is the later one."""
    places = {node: index for index, node in enumerate(graph)}
    found = []
    for value, residual in (add.inputs, add.inputs[::-1]):
        conv = producer(value, "Conv", FUSED)
        same = str(value.shape) == str(residual.shape) == str(add.outputs[0].shape)
        if conv is not None and same and conv.inputs[5] is None and only_user(value, "Add") is add:
            found.append((list(conv.inputs[1].shape)[2:], places[conv], conv, residual))
    if found:
        *_, conv, residual = max(found, key=lambda entry: (int(entry[0][0]), entry[1]))
        facts = {name: attr.value for name, attr in conv.attributes.items()}
        replace(graph, add, "Conv", [*conv.inputs[:5], residual], facts, name=conv.name)
        graph.remove(conv, safe=True)
