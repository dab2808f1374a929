"""Columns of a product: which values of a graph are some of them, and a `Linear` that computes some alone."""

from __future__ import annotations

import onnx_ir as ir

from exporter.passes.match import FUSED, attribute, constant

ROW_STEP = 128  # so many rows of any stored matrix, scale or bias are a multiple of 256 bytes, as bindings ask

Part = tuple[ir.Value, int, int]  # a value of the graph: columns `first` .. `first + columns` of the product


def columns_of(value: ir.Value) -> int | None:
    """The length of the last axis where it is fixed."""
    last = value.shape[-1] if value.shape else None
    return last if isinstance(last, int) else None


def parts_of(value: ir.Value, first: int, columns: int) -> list[Part] | None:
    """What Split and Slice nodes make of `value`, down to the parts that something computes with.

    None if `value` itself is used whole, or cut in any other way.
    """
    found: list[Part] = []
    if value.is_graph_output() or not value.uses():
        return None
    for user, _ in value.uses():
        cuts = cuts_of(user, value, first, columns)
        if cuts is None:
            return None
        for cut in cuts:
            found += parts_of(*cut) or [cut]
    return found


def cuts_of(node: ir.Node, value: ir.Value, first: int, columns: int) -> list[Part] | None:
    """What `node` cuts out of `value`, which is columns from `first` on; None if it does something else."""
    axis = len(value.shape) - 1
    if node.op_type == "Split" and attribute(node, "axis", 0) in (-1, axis):
        sizes = [columns_of(output) for output in node.outputs]
        starts = [sum(sizes[:index]) for index in range(len(sizes))] if None not in sizes else []
    elif node.op_type == "Slice" and node.inputs[0] is value:
        bounds = [constant(i) for i in node.inputs[1:4]]
        steps = constant(node.inputs[4]) if len(node.inputs) > 4 else None
        if any(b is None or b.size != 1 for b in bounds) or (steps is not None and list(steps.flat) != [1]):
            return None
        start, _, sliced = (int(b.reshape(())) for b in bounds)
        if sliced not in (-1, axis):
            return None
        sizes, starts = [columns_of(node.outputs[0])], [start + columns if start < 0 else start]
    else:
        return None
    if None in sizes:
        return None
    return [(out, first + start, size) for out, start, size in zip(node.outputs, starts, sizes, strict=True)]


def give_own_product(graph: ir.Graph, whole: ir.Node, part: Part) -> None:
    """Compute a part by a `Linear` of its own, just before its first use; one that nobody uses needs none.

    The new node has the attribute `first`, the row of the weight that it begins with; its last output axis says how
    many rows it takes.
    """
    value, first, columns = part
    if not value.uses():
        return
    positions = {node: index for index, node in enumerate(graph)}
    before = min((user for user, _ in value.uses()), key=lambda user: positions[user])
    facts = {name: attribute(whole, name) for name in ("kind", "group", "parts")}
    first += attribute(whole, "first", 0)
    product = ir.node("Linear", list(whole.inputs), {**facts, "first": first}, domain=FUSED, name=whole.name)
    out = product.outputs[0]
    out.shape, out.type = ir.Shape([*whole.outputs[0].shape[:-1], columns]), whole.outputs[0].type
    graph.insert_before(before, product)
    out.name, value.name = value.name, None
    for user, index in list(value.uses()):
        user.replace_input_with(index, out)
