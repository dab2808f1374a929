"""Pass: the denoiser's graph becomes two, so that what depends on the time alone can be computed beforehand.

Requires: an input `timestep_features`, and weights as `store_weights` leaves them.
Ensures: `modulation` computes one vector from `timestep_features`; `denoiser` takes that vector as its input
`modulation` instead, and no weight that only the time passes through is left in it.

What crosses between the two is flattened and concatenated in graph order. The cut lies right behind the
last weight: additions, splits and the like that follow stay in the denoiser, where they cost nothing, are
many more values than what they come from, and are what fuse_modulation looks for.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporter.errors import BadCheckpoint

TIME, VECTOR = "timestep_features", "modulation"
_SIZES = "modulation/sizes"


def split_modulation(model: ir.Model) -> tuple[ir.Model, ir.Model]:
    """(modulation, denoiser) of a denoiser's graph; `model` itself becomes the latter.

    Raises BadCheckpoint if no weight depends on the time alone, or if something else takes the time.
    """
    crossing = _crossing(model.graph)
    if not crossing:
        raise BadCheckpoint(f"denoiser: expected weights that only {TIME} passes through, found none")
    time = next(value for value in model.graph.inputs if value.name == TIME)
    modulation = model.clone()
    _keep_modulation(modulation, [value.name for value in crossing])
    _take_vector(model, crossing)
    for part in (modulation, model):
        common.RemoveUnusedNodesPass()(part)
        common.RemoveUnusedFunctionsPass()(part)
    common.RemoveUnusedOpsetsPass()(modulation)
    if time.uses():
        user = time.uses()[0].node
        raise BadCheckpoint(f"denoiser: expected {TIME} to pass through weights only, found {user.op_type} use it")
    return modulation, model


def _crossing(graph: ir.Graph) -> list[ir.Value]:
    """Values made of time and weights alone, the last weight included, that others take; in graph order."""
    stored = {value for value in graph.initializers.values() if value.const_value is None}
    fixed, timed, weighted = set(graph.initializers.values()), set(), []
    timed.update(value for value in graph.inputs if value.name == TIME)
    for node in graph:
        inputs = {value for value in node.inputs if value is not None}
        if inputs <= fixed:
            fixed.update(node.outputs)
            if inputs & stored:  # the cast or order of a weight
                stored.update(node.outputs)
        elif inputs <= fixed | timed:
            timed.update(node.outputs)
            if inputs & stored:
                weighted.append(node)
    made = set()  # nodes that lead to a weight
    while weighted:
        node = weighted.pop()
        if node not in made:
            made.add(node)
            weighted += [value.producer() for value in node.inputs if value in timed and value.producer() is not None]
    taken = set(graph.outputs) | {value for node in graph if node not in made for value in node.inputs}
    return [value for node in graph if node in made for value in node.outputs if value in taken]


def _size(value: ir.Value) -> int:
    return math.prod(int(size) for size in value.shape)


def _shaped(value: ir.Value, shape: list[int], graph: ir.Graph, after: ir.Node) -> tuple[ir.Value, ir.Node]:
    """`value` under another shape and the last node that makes it, put behind `after`."""
    if list(value.shape) == shape:
        return value, after
    target = ir.Value(name=f"{value.name}/shape", const_value=ir.tensor(np.array(shape, np.int64)))
    target.shape, target.type = target.const_value.shape, ir.TensorType(ir.DataType.INT64)
    graph.initializers[target.name] = target
    node = ir.node("Reshape", [value, target])
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = (
        f"{value.name}/flat",
        ir.Shape(shape),
        value.type,
    )
    graph.insert_after(after, node)
    return node.outputs[0], node


def _keep_modulation(model: ir.Model, names: list[str]) -> None:
    """Make the values named, as one vector, the graph's only output, and the time its only input."""
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    parts = []
    for name in names:
        value = values[name]
        parts.append(_shaped(value, [1, _size(value)], graph, value.producer())[0])
    joined = ir.node("Concat", parts, {"axis": 1}, name=VECTOR)
    vector = joined.outputs[0]
    vector.name, vector.type = VECTOR, ir.TensorType(ir.DataType.FLOAT)
    vector.shape = ir.Shape([1, sum(map(_size, parts))])
    graph.append(joined)
    graph.outputs[:] = [vector]
    graph.inputs[:] = [value for value in graph.inputs if value.name == TIME]


def _take_vector(model: ir.Model, crossing: list[ir.Value]) -> None:
    """Replace the crossing values by slices of the input `modulation`, which stands where the time stood."""
    graph = model.graph
    sizes = [_size(value) for value in crossing]
    vector = ir.Value(name=VECTOR, shape=ir.Shape([1, sum(sizes)]), type=ir.TensorType(ir.DataType.FLOAT))
    table = ir.Value(name=_SIZES, const_value=ir.tensor(np.array(sizes, np.int64)))
    table.shape, table.type = ir.Shape([len(sizes)]), ir.TensorType(ir.DataType.INT64)
    graph.initializers[_SIZES] = table
    split = ir.node("Split", [vector, table], {"axis": 1}, num_outputs=len(sizes), name=f"{VECTOR}/split")
    graph.insert_before(graph.node(0), split)
    for value, size, part in zip(crossing, sizes, split.outputs, strict=True):
        part.name, part.shape, part.type = f"{VECTOR}/{value.name}", ir.Shape([1, size]), value.type
        shaped = _shaped(part, [int(size) for size in value.shape], graph, split)[0]
        for user, index in list(value.uses()):
            user.replace_input_with(index, shaped)
        for position, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[position] = shaped
    graph.inputs[:] = [vector if value.name == TIME else value for value in graph.inputs]
