"""Run a plan on the CPU with the kernels' numpy references: checks a lowering without any GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import webgpu_kernels
from exporter.expressions import evaluate
from exporter.lower.bands import free_symbols, unrolled

_TYPES = {"f32": np.float32, "u32": np.uint32}


def run_plan(
    plan: dict[str, Any], tensor: Callable[[str], np.ndarray], symbols: dict[str, int], inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Execute every dispatch in order.

    Args:
        tensor: stored tensor by name, in its stored type.
        symbols: values of the plan's symbols; those that a device decides may be left out.
        inputs: flat or shaped arrays by input name.

    Returns:
        Flat arrays of all outputs.
    """
    symbols = {**free_symbols(), **symbols}
    buffers = [
        np.full(int(evaluate(v["elements"], symbols)), np.nan if v["dtype"] == "f32" else 0, _TYPES[v["dtype"]])
        for v in plan["values"]
    ]
    for value, buffer in zip(plan["values"], buffers, strict=True):
        if value["role"] == "input":
            buffer[:] = np.asarray(inputs[value["name"]]).reshape(-1)
    for dispatch, here in unrolled(plan, symbols):
        kernel = webgpu_kernels.get(dispatch["kernel"])
        options = kernel.complete(dispatch["options"])
        uniforms = {name: evaluate(size, here) for name, size in dispatch["uniforms"].items()}
        operands, outputs, targets = {}, {}, {}
        for binding in kernel.present_bindings(options):
            target = dispatch["bindings"][binding.name]
            value = isinstance(target, int) or "value" in target
            bound = _window(buffers, target, here) if value else _stored(tensor, target)
            operands[binding.name] = bound
            if binding.access == "read_write":
                outputs[binding.name], targets[binding.name] = bound.size, bound
        results = kernel.reference(operands, options, dispatch["constants"], uniforms, outputs)
        for name, result in results.items():
            written = ~np.isnan(result.astype(np.float64)) if result.dtype.kind == "f" else np.ones(result.shape, bool)
            targets[name][written] = result[written].astype(targets[name].dtype)
    return {v["name"]: b for v, b in zip(plan["values"], buffers, strict=True) if v["role"] == "output"}


def _window(buffers: list[np.ndarray], target: int | dict[str, Any], symbols: dict[str, int]) -> np.ndarray:
    """The part of a value that a dispatch binds, sharing its memory."""
    if isinstance(target, int):
        return buffers[target]
    first, elements = (evaluate(target[key], symbols) for key in ("first", "elements"))
    assert first % 64 == 0 and first >= 0 and first + elements <= buffers[target["value"]].size, target
    return buffers[target["value"]][first : first + elements]


def _stored(tensor: Callable[[str], np.ndarray], target: str | dict[str, Any]) -> np.ndarray:
    """A whole tensor, or the rows of one that a dispatch binds."""
    if isinstance(target, str):
        return _packed(tensor(target))
    return _packed(tensor(target["tensor"])[target["first"] : target["first"] + target["rows"]])


def _packed(array: np.ndarray) -> np.ndarray:
    """A stored tensor as its GPU buffer: flat, float16 as pairs in u32 words."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype == np.float16:
        if flat.size % 2:
            flat = np.append(flat, np.float16(0))
        return flat.view(np.uint32)
    return flat
