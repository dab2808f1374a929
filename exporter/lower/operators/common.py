"""What several operators need: refusals, and where rows of a result go."""

from __future__ import annotations

import onnx_ir as ir
import sympy

from exporter.errors import BadBundle
from exporter.lower.lowering import Lowering
from exporter.lower.sizes import Size, product
from exporter.lower.views import Heads, Rows


def refuse(node: ir.Node, what: str) -> BadBundle:
    return BadBundle(f"{node.op_type} at {node.name or node.outputs[0].name}: {what}")


def row_result(low: Lowering, target: ir.Value, columns: Size) -> Rows:
    """Where rows of `target` go; a part of a concatenation must be writable row by row."""
    view = low.result(target)
    flat = view.reshape((sympy.expand(sympy.cancel(product(view.shape) / columns)), columns))
    if flat is None or flat.strides[1] != 1:
        raise BadBundle(f"{target.name}: a result in rows expected")
    return Rows(flat, flat.strides[0] if flat.shape[0] != 1 else columns)


def head_result(low: Lowering, node: ir.Node, tokens: Size, heads: int, size: int) -> Heads:
    """Where heads of the node's result go: [tokens, heads, size]."""
    split = low.result(node.outputs[0]).reshape((tokens, sympy.Integer(heads), sympy.Integer(size)))
    if split is None:
        raise refuse(node, "a result in rows of heads expected")
    return Heads(split, split.strides[0], split.strides[1])


def padded(node: ir.Node, count: int) -> tuple[ir.Value | None, ...]:
    """All `count` inputs of a node, None for those it ends without."""
    return (*node.inputs, *[None] * count)[:count]
