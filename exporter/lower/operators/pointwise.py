"""Pointwise operators and SwiGLU."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from exporter.lower.lowering import Lowering
from exporter.lower.operators.common import row_result
from exporter.lower.sizes import shape_of
from exporter.lower.views import View


def unary(op: str) -> Callable[[Lowering, ir.Node], None]:
    def lower(low: Lowering, node: ir.Node) -> None:
        x = low.view(node.inputs[0])
        if len(x.shape) == 4:
            x = low.image(x, node.outputs[0].name)
        low.unary(op, x, low.result(node.outputs[0], _image_order(x)), node.name or node.outputs[0].name)

    return lower


def binary(op: str) -> Callable[[Lowering, ir.Node], None]:
    def lower(low: Lowering, node: ir.Node) -> None:
        a, b = (low.view(i) for i in node.inputs)
        y = low.result(node.outputs[0], _image_order(a))
        low.binary(op, a, b, y, node.name or node.outputs[0].name)

    return lower


def _image_order(x: View) -> tuple[int, ...] | None:
    """Results of work on pictures are pictures: height, width, channels."""
    is_image = len(x.shape) == 4 and not x.is_contiguous() and x.transpose([0, 2, 3, 1]).is_contiguous()
    return (0, 2, 3, 1) if is_image else None


def swiglu(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    columns = shape_of(target)[-1]
    gate, up = (low.rows(low.view(i), columns, i.name) for i in node.inputs)
    y = row_result(low, target, columns)
    low.dispatch(
        "swiglu",
        {"gate": gate.view, "up": up.view, "y": y.view},
        constants={"COLUMNS": columns},
        source=target.name,
        uniforms={"rows": gate.view.shape[0], **gate.uniforms("gate"), **up.uniforms("up"), **y.uniforms("y")},
    )
