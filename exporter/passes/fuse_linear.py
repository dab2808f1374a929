"""Every matrix product with a weight becomes `Linear(x, parts…[, bias])` with its storage kind.

Handles: (1) MatMul with a transposed dense weight, (2) Gemm with transB, (3) the packed linears of the
domain `bitbrush`; each with an optional following Add of a one-axis bias.
Ensures: no Gemm is left, and no MatMul whose second operand is a stored weight.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from exporter.graph.functions import DOMAIN
from exporter.passes.match import attribute, only_user, producer, replace

_PACKED = re.compile(r"^Linear(Binary|Ternary|Int4|Int8)(?:G(\d+))?$")


def stored_weight(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a Cast, if `value` is a stored dense weight."""
    cast = producer(value, "Cast")
    source = cast.inputs[0] if cast is not None else value
    return (
        source
        if source is not None and source.is_initializer() and source.shape is not None and len(source.shape) > 1
        else None
    )


def _is_bias(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.shape is not None and len(value.shape) == 1


def fuse_linear(model: ir.Model) -> None:
    graph = model.graph
    for node in list(graph):
        if node.op_type == "MatMul":
            transpose = producer(node.inputs[1], "Transpose")
            weight = stored_weight(transpose.inputs[0]) if transpose is not None else None
            if weight is not None:
                _emit(graph, node, node.inputs[0], [weight], "dense", 0, None)
        elif node.op_type == "Gemm" and attribute(node, "transB", 0) == 1 and attribute(node, "transA", 0) == 0:
            weight = stored_weight(node.inputs[1])
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if weight is not None:
                _emit(graph, node, node.inputs[0], [weight], "dense", 0, bias)
        elif node.domain == DOMAIN and (match := _PACKED.match(node.op_type)):
            kind, group = match[1].lower(), int(match[2] or 128)
            _emit(graph, node, node.inputs[0], list(node.inputs[1:]), kind, group, None)


def _emit(graph: ir.Graph, node: ir.Node, x, parts, kind: str, group: int, bias) -> None:
    name = re.sub(r"\.weight(\.codes|\.trits)?$", "", parts[0].name)
    facts = {"kind": kind, "group": group, "parts": len(parts)}
    inputs = [x, *parts] if bias is None else [x, *parts, bias]
    linear = replace(graph, node, "Linear", inputs, facts, name=name)
    add = only_user(linear.outputs[0], "Add")
    if bias is None and add is not None:
        other = next(i for i in add.inputs if i is not linear.outputs[0])
        if _is_bias(other):
            replace(graph, add, "Linear", [x, *parts, other], facts, name=name)
            graph.remove(linear, safe=True)
