"""Layout operators: they only make views; a copy is a dispatch of `unary` identity."""

from __future__ import annotations

import onnx_ir as ir
import sympy

from exporter.lower.lowering import Lowering
from exporter.lower.operators.common import refuse
from exporter.lower.sizes import shape_of
from exporter.passes.match import attribute


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
        raise refuse(node, "starts and axes that follow from sizes, and steps of 1, expected")
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
