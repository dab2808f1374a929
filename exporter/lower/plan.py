"""Graph -> plan (DESIGN.md §4): run the passes, lower every node, schedule the buffers."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import sympy
from onnx_ir.passes import common

import webgpu_kernels
from exporter.errors import BadBundle
from exporter.expressions import evaluate
from exporter.lower.bands import free_symbols, symbols_of
from exporter.lower.lowering import Lowering
from exporter.lower.memory import assign_arenas
from exporter.lower.operators import OPERATORS, WRITES_ROWS
from exporter.lower.sizes import Size, product, shape_of
from exporter.passes import run_passes

FORMAT = 3

# Sizes for which the arenas are divided best: a picture of 1024x1024.
TYPICAL = {"text_tokens": 512, "image_tokens": 4096, "rows": 64, "columns": 64, **free_symbols()}


def lower_graph(model: ir.Model, component: str) -> dict[str, Any]:
    """The plan of one component as a JSON object.

    Args:
        model: a bundle's graph; modified in place.
        component: its name; the denoiser also gets `euler_step`, the decoder `pixels`.

    Raises:
        BadBundle: an operator without a lowering (its name, and where it comes from), or one used in
            a way that no kernel computes.
    """
    run_passes(model)
    common.RemoveUnusedNodesPass()(model)
    low = Lowering(model, _destinations(model.graph))
    static = {value.name for value in model.graph.initializers.values()}
    for node in model.graph:
        if _skippable(node, static):
            continue
        lower = OPERATORS.get((node.domain, node.op_type))
        if lower is None:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise BadBundle(
                f"{component}: no kernel for the ONNX operator {name}, which computes "
                f"{node.name or node.outputs[0].name}"
            )
        try:
            lower(low, node)
        except ValueError as error:
            raise BadBundle(f"{component}: {node.op_type} at {node.name or node.outputs[0].name}: {error}") from error
    _copy_views_to_outputs(low, model.graph)
    if component == "denoiser":
        _append_euler_step(low)
    if component == "decoder":
        _append_pixels(low)
    return _schedule(low, component)


def _skippable(node: ir.Node, static: set[str]) -> bool:
    """Shape arithmetic, constants, and the casts and orders of stored weights compute nothing at run time."""
    if node.op_type == "Constant" or all(out.dtype == ir.DataType.INT64 for out in node.outputs):
        return True
    if node.op_type in ("Shape", "ConstantOfShape"):
        return True
    if node.op_type in ("Cast", "Transpose") and node.inputs[0].name in static:
        static.add(node.outputs[0].name)
        return True
    return False


def _destinations(graph: ir.Graph) -> dict[str, tuple[ir.Value, int, Size]]:
    """Values that are only ever concatenated and whose kernels can write rows straight into place."""
    found = {}
    for node in graph:
        if node.op_type != "Concat" or node.outputs[0].dtype == ir.DataType.INT64:
            continue
        whole = node.outputs[0]
        axis = node.attributes["axis"].value % len(shape_of(whole))
        start = sympy.Integer(0)
        for value in node.inputs:
            maker = value.producer()
            writer = OPERATORS.get((maker.domain, maker.op_type)) if maker is not None else None
            if writer in WRITES_ROWS and len(value.uses()) == 1 and not value.is_graph_output():
                found[value.name] = (whole, axis, start)
            start = sympy.expand(start + shape_of(value)[axis])
    return found


def _copy_views_to_outputs(low: Lowering, graph: ir.Graph) -> None:
    """A graph output that is only a view of something gets a buffer of its own."""
    for value in graph.outputs:
        view = low.views[value.name]
        if low.values[view.operand]["role"] != "output":
            low.unary("identity", view, low.result(value), value.name)


def _append_euler_step(low: Lowering) -> None:
    latents, velocity = low.views["latents"], low.views["velocity"]
    step = low.add_value("step_size", "input", sympy.Integer(1))
    after = low.add_value("next_latents", "output", product(latents.shape))
    low.dispatch(
        "euler_step",
        {"x": latents, "velocity": velocity, "step_size": step, "y": after},
        source="euler_step",
        uniforms={"elements": product(latents.shape), "x_offset": 0, "velocity_offset": 0, "y_offset": 0},
    )


def _append_pixels(low: Lowering) -> None:
    image = low.views["image"]
    count = product(image.shape[2:])
    pixels = low.add_value("pixels", "output", count, "u32")
    low.dispatch(
        "pixels", {"x": image, "y": pixels}, source="pixels", uniforms={"pixels": count, "x_offset": image.offset}
    )


def _schedule(low: Lowering, component: str) -> dict[str, Any]:
    lives, conflicts = _lives_and_conflicts(low)
    temporaries = sorted(conflicts)
    number = {index: position for position, index in enumerate(temporaries)}
    sizes = [4 * int(evaluate(low.values[index]["elements"], TYPICAL)) for index in temporaries]
    arenas = assign_arenas(
        [{number[other] for other in conflicts[index] if other != index} for index in temporaries],
        [(size, *lives[index]) for size, index in zip(sizes, temporaries, strict=True)],
    )
    kept = [index for index, value in enumerate(low.values) if value["role"] != "temporary" or index in number]
    renamed = {index: position for position, index in enumerate(kept)}
    values = []
    for index in kept:
        entry = dict(low.values[index])
        if entry["role"] == "temporary":
            entry |= {"arena": arenas[number[index]], "first": lives[index][0], "last": lives[index][1]}
        values.append(entry)
    for dispatch in low.dispatches:
        dispatch["bindings"] = {name: _renamed(b, renamed) for name, b in dispatch["bindings"].items()}
    sizes = [value["elements"] for value in low.values] + [loop["band_rows"] for loop in low.loops]
    symbols = {name for size in sizes for name in symbols_of(size)}
    return {
        "format": FORMAT,
        "component": component,
        "symbols": sorted(symbols),
        "arenas": max(arenas, default=-1) + 1,
        "values": values,
        "loops": low.loops,
        "dispatches": low.dispatches,
    }


def _lives_and_conflicts(low: Lowering) -> tuple[dict[int, list[int]], dict[int, set[int]]]:
    """First and last dispatch of each value, the whole loop where one uses it; what must not share its arena."""
    lives: dict[int, list[int]] = {}
    conflicts: dict[int, set[int]] = {}
    spans = {at: (loop["first"], loop["last"]) for loop in low.loops for at in range(loop["first"], loop["last"] + 1)}
    for position, dispatch in enumerate(low.dispatches):
        written, read = _accesses(dispatch)
        first, last = spans.get(position, (position, position))
        for index in written | read:
            life = lives.setdefault(index, [first, last])
            life[1] = last
        temporary = {index for index in written | read if low.values[index]["role"] == "temporary"}
        for index in temporary & written:
            conflicts.setdefault(index, set()).update(temporary & read)
        for index in temporary & read:
            conflicts.setdefault(index, set()).update(temporary & written)
    return lives, conflicts


def _renamed(binding: Any, renamed: dict[int, int]) -> Any:
    if isinstance(binding, dict) and "value" in binding:
        return {**binding, "value": renamed[binding["value"]]}
    return renamed[binding] if isinstance(binding, int) else binding


def _accesses(dispatch: dict[str, Any]) -> tuple[set[int], set[int]]:
    """(written, read) plan values of a dispatch; also checks it against the kernel's record."""
    record = webgpu_kernels.get(dispatch["kernel"])
    try:
        bindings = record.present_bindings(dispatch["options"])
    except ValueError as error:
        raise BadBundle(str(error)) from error
    expected, given = {b.name for b in bindings}, set(dispatch["bindings"])
    if expected != given or set(record.uniforms) != set(dispatch["uniforms"]):
        raise BadBundle(
            f"{dispatch['source']}: kernel {record.name} takes {sorted(expected)} and {sorted(record.uniforms)}, "
            f"given {sorted(given)} and {sorted(dispatch['uniforms'])}"
        )
    dispatch["constants"] = {name: value for name, value in dispatch["constants"].items() if name in record.constants}
    values: dict[str, set[int]] = {"read_write": set(), "read": set()}
    for binding in bindings:
        target = dispatch["bindings"][binding.name]
        target = target.get("value") if isinstance(target, dict) else target
        if isinstance(target, int):
            values[binding.access].add(target)
    return values["read_write"], values["read"]
