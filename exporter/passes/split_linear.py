"""A wide `Linear` that is only taken apart becomes one `Linear` a part, computed where it is used.

klein's single blocks compute queries, keys and values in one product, three times as wide as the residual stream. In
parts, each lives only until it is used.

Handles: a `Linear` of more than WIDE columns whose output goes through Split and Slice of its last axis
alone, at multiples of ROW_STEP.
Ensures: such nodes have the attribute `first`, the row of the weight that they begin with; their last
output axis says how many rows they take.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.passes.columns import ROW_STEP, columns_of, give_own_product, parts_of
from exporter.passes.match import FUSED, attribute

WIDE = 8192  # columns; below that the whole value is small, and narrow products leave a GPU idle


def split_linear(model: ir.Model) -> None:
    graph = model.graph
    for node in [n for n in graph if n.op_type == "Linear" and n.domain == FUSED]:
        columns = columns_of(node.outputs[0])
        if columns is None or columns <= WIDE or attribute(node, "epilogue") is not None:
            continue
        parts = parts_of(node.outputs[0], 0, columns)
        if parts is None or any(first % ROW_STEP or size % ROW_STEP for _, first, size in parts):
            continue
        for part in parts:
            give_own_product(graph, node, part)
