"""What is added to a `Linear` becomes its epilogue: residual + x·Wᵀ, or residual + gate·(x·Wᵀ) with a gate of one row.

Handles: an Add of something computed, of the same shape, or of the product times a gate, where nothing else uses the
product; with bias, too. Not handled: more operands than every WebGPU device binds, x's scales counted (a gate and a
bias on affine weights), and `swiglu`.
Ensures: the attribute `epilogue` is "residual" or "gate_residual". Inputs: x, parts, bias or None, residual, gate.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.passes.columns import columns_of
from exporter.passes.match import FUSED, attribute, constant, is_row, only_user, producer, replace

STORAGE_BUFFERS = 8  # of a shader, on every WebGPU device


def fuse_residual(model: ir.Model) -> None:
    graph = model.graph
    for add in [n for n in graph if n.op_type == "Add" and n.domain == ""]:
        for value, residual in (add.inputs, add.inputs[::-1]):
            if residual.is_initializer() or not str(value.shape) == str(residual.shape) == str(add.outputs[0].shape):
                continue
            product, gate = _product(value, add)
            if product is not None and _fuse(graph, add, product, residual, gate):
                break


def _product(value: ir.Value, add: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The `Linear` that `value` is for `add` alone, and the row that it is multiplied by."""
    if only_user(value, "Add") is not add:
        return None, None
    linear, gated = producer(value, "Linear", FUSED), producer(value, "Mul")
    if linear is not None or gated is None:
        return linear, None
    for factor, gate in (gated.inputs, gated.inputs[::-1]):
        linear = producer(factor, "Linear", FUSED)
        fits = is_row(gate) and constant(gate) is None and columns_of(gate) == columns_of(factor)
        if linear is not None and fits and only_user(factor, "Mul") is gated:
            return linear, gate
    return None, None


def _fuse(graph: ir.Graph, add: ir.Node, linear: ir.Node, residual: ir.Value, gate: ir.Value | None) -> bool:
    count = 1 + attribute(linear, "parts")
    bias = linear.inputs[count] if len(linear.inputs) > count else None
    inputs = [*linear.inputs[:count], bias, residual, *([gate] if gate is not None else [])]
    scales_and_y = 2
    if "epilogue" in linear.attributes or len([i for i in inputs if i is not None]) + scales_and_y > STORAGE_BUFFERS:
        return False
    facts = {name: attribute(linear, name) for name in ("kind", "group", "parts", "first") if name in linear.attributes}
    between = add.inputs[0 if add.inputs[1] is residual else 1].producer()
    epilogue = "residual" if gate is None else "gate_residual"
    replace(graph, add, "Linear", inputs, {**facts, "epilogue": epilogue}, name=linear.name)
    for node in dict.fromkeys((between, linear)):
        graph.remove(node, safe=True)
    return True
