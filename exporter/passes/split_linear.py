"""A wide `Linear` that is only taken apart becomes one `Linear` a part, computed where it is used.

klein's single blocks compute queries, keys, values, gates and ups in one product, nine times as wide as the
residual stream. As one value that is most of the denoiser's memory; in parts, each lives only until it is
used. `SwiGLU` of two such parts is computed in two halves, so that gate and up are never whole.

Handles: a `Linear` of more than WIDE columns whose output goes through Split and Slice of its last axis
alone, at multiples of ROW_STEP.
Ensures: such nodes have the attribute `first`, the row of the weight that they begin with; their last
output axis says how many rows they take.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from exporter.passes.match import FUSED, attribute, constant

WIDE = 8192  # columns; below that the whole value is small, and narrow products leave a GPU idle
ROW_STEP = 128  # so many rows of any stored matrix, scale or bias are a multiple of 256 bytes, as bindings ask

Part = tuple[ir.Value, int, int]  # a value of the graph: columns `first` .. `first + columns` of the product


def split_linear(model: ir.Model) -> None:
    graph = model.graph
    for node in [n for n in graph if n.op_type == "Linear" and n.domain == FUSED]:
        columns = _columns(node.outputs[0])
        if columns is None or columns <= WIDE:
            continue
        parts = _parts(node.outputs[0], 0, columns)
        if parts is None or any(first % ROW_STEP or size % ROW_STEP for _, first, size in parts):
            continue
        taken = {value: (first, size) for value, first, size in parts}
        positions = {other: index for index, other in enumerate(graph)}
        for value, first, size in parts:
            users = sorted({user for user, _ in value.uses()}, key=lambda user: positions[user])
            if len(users) == 1 and _halves(graph, users[0], node, taken):
                continue
            if users and value.uses():
                part = _linear(graph, users[0], node, first, size)
                part.name, value.name = value.name, None
                for user, index in list(value.uses()):
                    user.replace_input_with(index, part)


def _columns(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape is not None else None
    return last if isinstance(last, int) else None


def _parts(value: ir.Value, first: int, columns: int) -> list[Part] | None:
    """What Split and Slice nodes make of `value`, down to the parts that something computes with.

    None if `value` itself is used whole, or cut in any other way.
    """
    found: list[Part] = []
    if value.is_graph_output() or not value.uses():
        return None
    for user, _ in value.uses():
        cuts = _cuts(user, value, first, columns)
        if cuts is None:
            return None
        for cut in cuts:
            found += _parts(*cut) or [cut]
    return found


def _cuts(node: ir.Node, value: ir.Value, first: int, columns: int) -> list[Part] | None:
    axis = len(value.shape) - 1
    if node.op_type == "Split" and attribute(node, "axis", 0) in (-1, axis):
        sizes = [_columns(output) for output in node.outputs]
        starts = [sum(sizes[:index]) for index in range(len(sizes))] if None not in sizes else []
    elif node.op_type == "Slice" and node.inputs[0] is value:
        bounds = [constant(i) for i in node.inputs[1:4]]
        steps = constant(node.inputs[4]) if len(node.inputs) > 4 else None
        if any(b is None or b.size != 1 for b in bounds) or (steps is not None and list(steps.flat) != [1]):
            return None
        start, _, sliced = (int(b.reshape(())) for b in bounds)
        if sliced not in (-1, axis):
            return None
        sizes, starts = [_columns(node.outputs[0])], [start + columns if start < 0 else start]
    else:
        return None
    if None in sizes:
        return None
    return [(out, first + start, size) for out, start, size in zip(node.outputs, starts, sizes, strict=True)]


def _linear(graph: ir.Graph, before: ir.Node, whole: ir.Node, first: int, columns: int) -> ir.Value:
    """Rows `first` .. `first + columns` of the weight times the whole node's input."""
    facts = {name: attribute(whole, name) for name in ("kind", "group", "parts")}
    part = ir.node("Linear", list(whole.inputs), {**facts, "first": first}, domain=FUSED, name=whole.name)
    out = part.outputs[0]
    out.name = f"{whole.outputs[0].name}/{first}+{columns}"
    out.shape = ir.Shape([*whole.outputs[0].shape[:-1], columns])
    out.type = whole.outputs[0].type
    graph.insert_before(before, part)
    return out


def _halves(graph: ir.Graph, node: ir.Node, whole: ir.Node, taken: dict[ir.Value, tuple[int, int]]) -> bool:
    """Compute a `SwiGLU` of two parts in two halves, straight into what concatenates it."""
    if node.op_type != "SwiGLU" or any(operand not in taken for operand in node.inputs):
        return False
    (gate, columns), (up, _) = (taken[operand] for operand in node.inputs)
    half = columns // 2
    if half % ROW_STEP:
        return False
    done = []
    for start in (0, half):
        operands = [_linear(graph, node, whole, first + start, half) for first in (gate, up)]
        piece = ir.node("SwiGLU", operands, {}, domain=FUSED, name=node.name)
        out = piece.outputs[0]
        out.name = f"{node.outputs[0].name}/{start}"
        out.shape, out.type = operands[0].shape, operands[0].type
        graph.insert_before(node, piece)
        done.append(out)
    _concatenate(graph, node, done)
    return True


def _concatenate(graph: ir.Graph, node: ir.Node, pieces: Sequence[ir.Value]) -> None:
    """Put the pieces side by side in place of the node's output."""
    result = node.outputs[0]
    axis = len(result.shape) - 1
    users = list(result.uses())
    concat = users[0][0] if len(users) == 1 else None
    if concat is not None and concat.op_type == "Concat" and attribute(concat, "axis") in (-1, axis):
        operands = [piece for value in concat.inputs for piece in (pieces if value is result else [value])]
        target, position = concat, concat
    else:
        operands, target, position = list(pieces), node, node
    joined = ir.node("Concat", operands, {"axis": axis}, name=target.name)
    out, old = joined.outputs[0], target.outputs[0]
    out.shape, out.type = old.shape, old.type
    graph.insert_before(position, joined)
    for user, index in list(old.uses()):
        user.replace_input_with(index, out)
    out.name, old.name = old.name, None
    if target is not node:
        graph.remove(target, safe=True)
    graph.remove(node, safe=True)
