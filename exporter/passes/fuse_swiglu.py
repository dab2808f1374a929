"""`SwiGLU` of two neighbouring parts of a `Linear` becomes a `Linear` with the epilogue `swiglu`.

Its weight is the rows of the gates and, right after them, those of the ups: klein's blocks have them so, alone in
double blocks and behind queries, keys and values in single ones. Gates and ups are never stored.

Handles: gate and up that Split and Slice of the last axis cut out of the product, the gate first and nothing between
them, each used once. What else is cut out of the product becomes another `Linear`, if it begins at a multiple
of ROW_STEP. Not handled: weights that some devices cannot bind whole, since rows of W are split among bindings.
Ensures: the attribute `epilogue` is "swiglu", `first` the row of the first gate if the product had more; the output's
last axis has half as many columns as the node takes rows.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from exporter.passes.columns import ROW_STEP, Part, columns_of, cuts_of, give_own_product, parts_of
from exporter.passes.match import FUSED, attribute, replace

CORE_BINDING = 128 * 2**20  # bytes that every WebGPU device binds


def fuse_swiglu(model: ir.Model) -> None:
    graph = model.graph
    for node in [n for n in graph if n.op_type == "Linear" and n.domain == FUSED]:
        columns = columns_of(node.outputs[0])
        parts = parts_of(node.outputs[0], 0, columns) if columns is not None else None
        found = _gate_and_up(parts or [])
        if found is None or any(_bytes(tensor) > CORE_BINDING for tensor in node.inputs[1:] if tensor is not None):
            continue
        swiglu, first, size = found
        rest = _beside((node.outputs[0], 0, columns), first, first + 2 * size)
        if rest is None or first % ROW_STEP or any(start % ROW_STEP for _, start, _ in rest):
            continue
        facts = {name: attribute(node, name) for name in ("kind", "group", "parts")}
        window = {"first": first} if rest else {}
        replace(graph, swiglu, "Linear", list(node.inputs), {**facts, **window, "epilogue": "swiglu"}, name=node.name)
        for part in rest:
            give_own_product(graph, node, part)


def _gate_and_up(parts: list[Part]) -> tuple[ir.Node, int, int] | None:
    """(the SwiGLU of two neighbouring parts, its first gate, the number of gates)."""
    places = {value: (first, size) for value, first, size in parts}
    for value, (first, size) in places.items():
        users = list(value.uses())
        node = users[0][0] if len(users) == 1 else None
        if node is None or node.op_type != "SwiGLU" or node.domain != FUSED or node.inputs[0] is not value:
            continue
        up = node.inputs[1]
        if places.get(up) == (first + size, size) and len(up.uses()) == 1:
            return node, first, size
    return None


def _beside(part: Part, begin: int, end: int) -> list[Part] | None:
    """What else is cut out of the product: the widest values without columns begin .. end; None if one overlaps."""
    value, first, columns = part
    if first + columns <= begin or end <= first:
        return [part]
    if begin <= first and first + columns <= end:
        return []
    found: list[Part] = []
    for user, _ in value.uses():
        for cut in cuts_of(user, *part) or [None]:
            parts = _beside(cut, begin, end) if cut is not None else None
            if parts is None:
                return None
            found += parts
    return found


def _bytes(tensor: ir.Value) -> int:
    """Bytes of a stored tensor on the GPU, where trits, five to a byte, are codes of two bits."""
    stored = math.prod(int(size) for size in tensor.shape) * tensor.dtype.itemsize
    return stored * 5 // 4 if tensor.name.endswith(".trits") else stored
