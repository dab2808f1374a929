"""GPU bytes that running a plan takes: what site/js/runtime/prepare.js allocates, number by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.expressions import evaluate
from exporter.lower.memory import ALIGNMENT, place

ITEM_BYTES = 4  # values of plans are f32 or u32
PADDING = 16  # bytes that buffers and bindings are padded to


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def plan_bytes(plan: Mapping[str, Any], symbols: Mapping[str, int]) -> dict[str, int]:
    """Bytes on the GPU while a plan runs at given sizes, weights apart.

    Args:
        plan: as `lower_graph` makes it.
        symbols: a value for each of its symbols.

    Returns:
        {"arenas", "inputs", "outputs", "uniforms", "readback"}; their sum "total", the peak; and
        "largest_binding", the bytes of the largest value that a dispatch binds. Outputs are read back one at
        a time, so "readback" is the largest of them.
    """
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
    found = {
        "arenas": sum(place(lives)[1].values()),
        "inputs": sum(round_up(size, PADDING) for size in by_role["input"]),
        "outputs": sum(round_up(size, PADDING) for size in by_role["output"]),
        "uniforms": slot * len(plan["dispatches"]),
        "readback": max(by_role["output"], default=0),
    }
    bound = {b for dispatch in plan["dispatches"] for b in dispatch["bindings"].values() if isinstance(b, int)}
    largest = max(round_up(sizes[index], PADDING) for index in bound)
    return {**found, "total": sum(found.values()), "largest_binding": largest}
