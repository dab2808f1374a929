"""Products with stored weights: linear layers and embeddings."""

from __future__ import annotations

import re

import onnx_ir as ir

from exporter.lower.lowering import Lowering, aligned
from exporter.lower.operators.common import padded, refuse, row_result
from exporter.lower.sizes import shape_of
from exporter.passes.fuse_linear import stored_weight
from exporter.passes.match import attribute

# Uniforms of `linear` that only epilogues use.
NO_EPILOGUE = {"residual_offset": 0, "residual_stride": 0, "gate_offset": 0}


def linear(low: Lowering, node: ir.Node) -> None:
    kind, group = attribute(node, "kind"), attribute(node, "group")
    count = attribute(node, "parts")
    parts = list(node.inputs[1 : 1 + count])
    bias, residual, gate = padded(node, 4 + count)[1 + count :]
    epilogue, first = attribute(node, "epilogue", "none"), attribute(node, "first")
    target = node.outputs[0]
    k, n = shape_of(node.inputs[0])[-1], shape_of(target)[-1]
    x = low.rows(low.view(node.inputs[0]), k, node.inputs[0].name)
    y = row_result(low, target, n)
    weights, stored = stored_matrix(kind, parts)
    stored |= {"bias": bias.name} if bias is not None else {}
    if first is not None:
        taken = int(2 * n if epilogue == "swiglu" else n)
        stored = {name: {"tensor": tensor, "first": first, "rows": taken} for name, tensor in stored.items()}
    added, places = {}, dict(NO_EPILOGUE)
    if residual is not None:
        rows = low.rows(low.view(residual), n, residual.name)
        added["residual"], places = rows.view, places | rows.uniforms("residual")
    if gate is not None:
        row = low.rows(low.view(gate), n, gate.name).view
        added["gate"], places["gate_offset"] = row, row.offset
    low.dispatch(
        "linear",
        {"x": x.view, **stored, **added, "y": y.view},
        options={
            "weights": weights,
            "bias": bias is not None,
            "aligned": aligned(k, x.view.offset, x.stride),
            "epilogue": epilogue,
        },
        source=node.name or target.name,
        constants={"N": n, "K": k, "GROUP": group or 128},
        uniforms={"rows": x.view.shape[0], **x.uniforms("x"), **places, **y.uniforms("y")},
    )


def stored_matrix(kind: str, parts: list[ir.Value]) -> tuple[str, dict[str, str]]:
    """(option `weights`, weight bindings) of a stored matrix."""
    if kind == "dense":
        return ("f16" if parts[0].dtype == ir.DataType.FLOAT16 else "f32"), {"weight": parts[0].name}
    names = [re.sub(r"\.trits$", ".codes", part.name) for part in parts]  # the GPU has trits as codes
    return kind, dict(zip(("codes", "scales", "offsets"), names, strict=False))


def embedding(low: Lowering, node: ir.Node) -> None:
    target = node.outputs[0]
    if node.op_type == "Gather":
        weight = stored_weight(node.inputs[0])
        if weight is None or attribute(node, "axis", 0) != 0:
            raise refuse(node, "rows of a stored table expected")
        kind, tensors, group, ids = *stored_matrix("dense", [weight]), 128, node.inputs[1]
    else:
        kind, group = node.op_type.removeprefix("Embedding").lower().split("g")
        kind, tensors = stored_matrix(kind, list(node.inputs[:3]))
        group, ids = int(group), node.inputs[3]
    columns, table_rows = shape_of(target)[-1], _stored_rows(node)
    y = row_result(low, target, columns)
    low.dispatch(
        "embedding",
        {"ids": low.view(ids), **tensors, "y": y.view},
        options={"weights": kind},
        source=target.name,
        constants={"COLUMNS": columns, "GROUP": group},
        uniforms={"rows": y.view.shape[0], **y.uniforms("y"), "first_row": 0, "table_rows": table_rows},
    )


def _stored_rows(node: ir.Node) -> int:
    """Rows of the table that an embedding takes rows from."""
    table = stored_weight(node.inputs[0]) if node.op_type == "Gather" else node.inputs[0]
    return int(table.shape[0])
