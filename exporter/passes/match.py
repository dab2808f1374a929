"""Small tools for passes over an onnx-ir graph: look up, look down, replace."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

FUSED = "bitbrush.fused"  # nodes that exist only between the passes and the lowering


def producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that computes `value`, if it is an `op_type`."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == domain else None


def only_user(value: ir.Value, op_type: str, domain: str = "") -> ir.Node | None:
    """The single consumer of `value`, if there is exactly one and it is an `op_type`."""
    users = list(value.uses())
    if len(users) != 1 or value.is_graph_output():
        return None
    node = users[0][0]
    return node if node.op_type == op_type and node.domain == domain else None


def attribute(node: ir.Node, name: str, default=None):
    found = node.attributes.get(name)
    return default if found is None else found.value


def is_stored(value: ir.Value | None) -> bool:
    """Whether `value` is a tensor of the bundle: an initializer whose data is elsewhere."""
    return (
        value is not None
        and value.is_initializer()
        and (value.const_value is None or isinstance(value.const_value, ir.ExternalTensor))
    )


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The data of a constant, or None for anything computed, fed in or without data (a weight)."""
    if value is None:
        return None
    if value.const_value is not None and not is_stored(value):
        return value.const_value.numpy()
    node = producer(value, "Constant")
    if node is None:
        return None
    attr = next(iter(node.attributes.values()))
    return attr.value.numpy() if attr.type == ir.AttributeType.TENSOR else np.asarray(attr.value)


def is_scalar(value: ir.Value | None, number: float) -> bool:
    data = constant(value)
    return data is not None and data.size == 1 and float(data.reshape(())) == number


def is_row(value: ir.Value | None) -> bool:
    """A value with one row: all axes but the last are 1."""
    if value is None or value.shape is None:
        return False
    return all(size == 1 for size in list(value.shape)[:-1])


def replace(
    graph: ir.Graph,
    old: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict | None = None,
    name: str | None = None,
) -> ir.Node:
    """Put a fused node where `old` stands; its single output takes the place of `old`'s."""
    new = ir.node(op_type, inputs, attributes or {}, domain=FUSED, name=name or old.name)
    result, target = old.outputs[0], new.outputs[0]
    label = result.name
    target.shape, target.type = result.shape, result.type
    graph.insert_before(old, new)
    if result.is_graph_output():
        graph.outputs[list(graph.outputs).index(result)] = target
    for user, index in list(result.uses()):
        user.replace_input_with(index, target)
    graph.remove(old, safe=True)
    result.name = None
    target.name = label
    return new
