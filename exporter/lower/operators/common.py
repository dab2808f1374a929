"""What several operators need: refusals, and where rows of a result go."""

from __future__ import annotations

import onnx_ir as ir
import sympy

from exporter.errors import BadBundle
from exporter.lower.lowering import Lowering
from exporter.lower.sizes import product
from exporter.lower.views import View


def refuse(node: ir.Node, what: str) -> BadBundle:
    return BadBundle(f"{node.op_type} at {node.name or node.outputs[0].name}: {what}")


def row_result(low: Lowering, target: ir.Value, columns) -> tuple[View, sympy.Expr]:
    """(view, row stride) where rows of `target` go; a part of a concatenation must be writable row by row."""
    view = low.result(target)
    flat = view.reshape((sympy.expand(sympy.cancel(product(view.shape) / columns)), columns))
    if flat is None or flat.strides[1] != 1:
        raise BadBundle(f"{target.name}: a result in rows expected")
    return flat, flat.strides[0] if flat.shape[0] != 1 else columns
