"""Pass: point a graph's initializers at the bytes in the bundle's shards (ONNX external data).

Requires: every tensor record names an initializer without data, with the record's shape.
Ensures: stock ONNX tools load the file from the bundle's folder; a tensor that is split over several
shards is several initializers `NAME.part0`, … that a node `NAME.join` concatenates by rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporter.shards import split_name

TYPES = {
    "U32": ir.DataType.UINT32,
    "F16": ir.DataType.FLOAT16,
    "F32": ir.DataType.FLOAT,
    "U8": ir.DataType.UINT8,
}
JOIN = ".join"

# The one note of torch's exporter that is kept: from which module an operator comes.
_ORIGIN = "pkg.torch.onnx.name_scopes"


def link(model: ir.Model, tensors: dict[str, dict[str, Any]], shards: list[dict[str, Any]]) -> None:
    """Link `model` in place.

    Args:
        model: graph of a component.
        tensors: name -> record (dtype, shape, parts) as in the manifest. The dtype may differ from the
            graph's where float16 could not hold the values: then the initializer becomes f32.
        shards: the manifest's shards.
    """
    graph = model.graph
    for name, record in tensors.items():
        value = graph.initializers.get(name)
        if value is None:
            raise ValueError(f"{name}: expected an initializer of the graph, found none")
        if tuple(value.shape) != tuple(record["shape"]):
            raise ValueError(f"{name}: expected shape {tuple(value.shape)} as in the graph, found {record['shape']}")
        value.type = ir.TensorType(TYPES[record["dtype"]])
        if len(record["parts"]) == 1:
            value.const_value = _external(name, record["dtype"], record["shape"], record["parts"][0], shards)
        else:
            _join(graph, value, record, shards)
    empty = [name for name, value in graph.initializers.items() if value.const_value is None]
    if empty:
        raise ValueError(f"{empty[0]}: expected data for every initializer, found none")


def save(model: ir.Model, path: Path) -> None:
    """Write the ONNX file without the exporter's notes, which hold paths of the machine that made it."""
    graph = model.graph
    holders = [model, graph, *graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        holders += [node, *node.outputs]
    for holder in holders:
        holder.doc_string = None
        for key in set(holder.metadata_props) - {_ORIGIN}:
            del holder.metadata_props[key]
    ir.save(model, path)


def _external(name: str, dtype: str, shape: list[int], part: dict[str, int], shards: list[dict[str, Any]]):
    return ir.ExternalTensor(
        shards[part["shard"]]["file"],
        part["offset"],
        part["bytes"],
        TYPES[dtype],
        shape=ir.Shape(shape),
        name=name,
    )


def _join(graph: ir.Graph, value: ir.Value, record: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    """Replace the initializer by a Concat of its parts; its users stay as they are."""
    name, dtype, shape = value.name, record["dtype"], record["shape"]
    row = sum(part["bytes"] for part in record["parts"]) // shape[0]
    pieces = []
    for index, part in enumerate(record["parts"]):
        piece_shape = [part["bytes"] // row, *shape[1:]]
        piece = ir.Value(
            name=split_name(name, index),
            shape=ir.Shape(piece_shape),
            type=value.type,
            const_value=_external(split_name(name, index), dtype, piece_shape, part, shards),
        )
        graph.initializers[piece.name] = piece
        pieces.append(piece)
    users = list(value.uses())
    del graph.initializers[name]
    value.name = None
    joined = ir.node("Concat", pieces, {"axis": 0}, name=name + JOIN)
    whole = joined.outputs[0]
    whole.name, whole.shape, whole.type = name, ir.Shape(shape), value.type
    graph.insert_before(graph.node(0), joined)
    for user, index in users:
        user.replace_input_with(index, whole)
