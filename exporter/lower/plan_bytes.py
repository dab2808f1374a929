"""GPU bytes that running a plan takes: what site/js/runtime/prepare.js allocates, number by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.expressions import evaluate
from exporter.lower.bands import free_symbols, unrolled
from exporter.lower.memory import ALIGNMENT, place

ITEM_BYTES = 4  # values of plans are f32 or u32
PADDING = 16  # bytes that buffers and bindings are padded to


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def plan_bytes(plan: Mapping[str, Any], symbols: Mapping[str, int]) -> dict[str, int]:
    """Bytes on the GPU while a plan runs at given sizes, weights apart.

    Args:
        plan: as `lower_graph` makes it.
        symbols: a value for each of its symbols; those that the device decides may be left out.

    Returns:
        {"arenas", "inputs", "outputs", "uniforms", "readback"}; their sum "total", the peak; and
        "largest_binding", the bytes of the largest value or part of one that a dispatch binds. Outputs are
        read back one at a time, so "readback" is the largest of them.
    """
    symbols = {**free_symbols(), **symbols}
    sizes = [ITEM_BYTES * evaluate(value["elements"], symbols) for value in plan["values"]]
    lives = [
        (size, value["arena"], value["first"], value["last"])
        for value, size in zip(plan["values"], sizes, strict=True)
        if value["role"] == "temporary"
    ]
    by_role = {
        role: [size for value, size in zip(plan["values"], sizes, strict=True) if value["role"] == role]
        for role in ("input", "output")
    }
    slot = round_up(ITEM_BYTES * max(len(dispatch["uniforms"]) for dispatch in plan["dispatches"]), ALIGNMENT)
    steps = list(unrolled(plan, symbols))
    found = {
        "arenas": sum(place(lives)[1].values()),
        "inputs": sum(round_up(size, PADDING) for size in by_role["input"]),
        "outputs": sum(round_up(size, PADDING) for size in by_role["output"]),
        "uniforms": slot * len(steps),
        "readback": max(by_role["output"], default=0),
    }
    bound = (_bound_bytes(target, sizes, here) for dispatch, here in steps for target in dispatch["bindings"].values())
    return {**found, "total": sum(found.values()), "largest_binding": max(bound)}


def _bound_bytes(target: Any, sizes: list[int], symbols: Mapping[str, int]) -> int:
    """Bytes of a value or a window of one; 0 for stored tensors, which are no part of the plan."""
    if isinstance(target, int):
        return round_up(sizes[target], PADDING)
    return round_up(ITEM_BYTES * evaluate(target["elements"], symbols), PADDING) if "elements" in target else 0
