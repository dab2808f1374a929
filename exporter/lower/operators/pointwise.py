"""Pointwise operators, SwiGLU and the gated residual."""

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
    (gate, gate_stride), (up, up_stride) = (low.rows(low.view(i), columns, i.name) for i in node.inputs)
    y, y_stride = row_result(low, target, columns)
    low.dispatch(
        "swiglu",
        {"gate": gate, "up": up, "y": y},
        constants={"COLUMNS": columns},
        source=target.name,
        uniforms={
            "rows": gate.shape[0],
            "gate_offset": gate.offset,
            "gate_stride": gate_stride,
            "up_offset": up.offset,
            "up_stride": up_stride,
            "y_offset": y.offset,
            "y_stride": y_stride,
        },
    )


def gate_residual(low: Lowering, node: ir.Node) -> None:
    residual_value, gate_value, x_value = node.inputs
    target = node.outputs[0]
    columns = shape_of(target)[-1]
    residual, residual_stride = low.rows(low.view(residual_value), columns, residual_value.name)
    gate, _ = low.rows(low.view(gate_value), columns, gate_value.name)
    x, x_stride = low.rows(low.view(x_value), columns, x_value.name)
    y, y_stride = row_result(low, target, columns)
    low.dispatch(
        "gate_residual",
        {"residual": residual, "gate": gate, "x": x, "y": y},
        constants={"COLUMNS": columns},
        source=target.name,
        uniforms={
            "rows": x.shape[0],
            "residual_offset": residual.offset,
            "residual_stride": residual_stride,
            "gate_offset": gate.offset,
            "x_offset": x.offset,
            "x_stride": x_stride,
            "y_offset": y.offset,
            "y_stride": y_stride,
        },
    )
