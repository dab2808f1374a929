"""Operand types that x is converted to before a matrix product, k and v before attention, as numpy computes them.

The kernels `to_f16`, `quantize` and `heads_to_f16` (families/operands.py) do the same on the GPU; `Variant.converts`
names the type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from webgpu_kernels.strided import indices

F16_MAX = 65_504.0
SEGMENT = 128  # columns that share a scale in "int8"
# Kernel and options by operand type (`CONVERSIONS` in site/js/runtime/conversions.js).
CONVERSIONS = {
    "f16": ("to_f16", {}),
    "int8": ("quantize", {"share": "segment"}),
    "int8_rows": ("quantize", {"share": "row"}),
    "f16_heads": ("heads_to_f16", {"order": "tokens"}),
    "f16_heads_turned": ("heads_to_f16", {"order": "channels"}),
}


def converted(kind: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Rows as a variant binds them.

    Args:
        kind: "f16", "int8" (a scale a row and 128 columns) or "int8_rows" (a scale a row).
        values: float32[rows, columns].

    Returns:
        The words u32[...] under "", and for int8 under "_scales" f32[rows, segments, 2]: the scale, max|x| / 127,
        and the scale times the sum of the codes.
    """
    if kind == "f16":
        halves = values.clip(-F16_MAX, F16_MAX).astype(np.float16)
        return {"": np.ascontiguousarray(halves).reshape(-1).view(np.uint32)}
    rows, columns = values.shape
    segments = values.astype(np.float32).reshape(rows, -1, SEGMENT if kind == "int8" else columns)
    most = np.abs(segments).max(axis=2, keepdims=True)
    to_code = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    codes = np.rint(segments * to_code).clip(-127, 127)
    scales = most[..., 0] / np.float32(127)
    pairs = np.stack([scales, scales * codes.sum(axis=2, dtype=np.float32)], axis=-1).astype(np.float32)
    return {"": np.ascontiguousarray(codes.astype(np.int8)).reshape(-1).view(np.uint32), "_scales": pairs.reshape(-1)}


def converted_heads(kind: str, values: np.ndarray) -> np.ndarray:
    """The words u32[...] of heads.

    Args:
        kind: "f16_heads" ([head][token][channel]) or "f16_heads_turned" ([head][channel][token], tokens filled up with
            the last one to a multiple of 8).
        values: float32[tokens, heads, channels].
    """
    halves = values.clip(-F16_MAX, F16_MAX).astype(np.float16)
    if kind == "f16_heads_turned":
        halves = np.pad(halves, ((0, -len(halves) % 8), (0, 0), (0, 0)), "edge").transpose(1, 2, 0)
    else:
        halves = halves.transpose(1, 0, 2)
    return np.ascontiguousarray(halves).reshape(-1).view(np.uint32)


def converted_inputs(
    converts: Mapping[str, str],
    inputs: Mapping[str, np.ndarray],
    uniforms: Mapping[str, int],
    constants: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """`inputs` of a kernel with the operands that a variant wants converted in place of their rows."""
    found = dict(inputs)
    for name, kind in converts.items():
        offset, stride = uniforms[f"{name}_offset"], uniforms[f"{name}_stride"]
        if kind.startswith("f16_heads"):
            sizes = uniforms["kv_tokens"], constants["KV_HEADS"], constants["HEAD_SIZE"]
            places = indices(offset, sizes, (stride, uniforms[f"{name}_head_stride"], 1))
            found[name] = converted_heads(kind, inputs[name][places])
            continue
        values = inputs[name][indices(offset, (uniforms["rows"], constants["K"]), (stride, 1))]
        found |= {name + suffix: array for suffix, array in converted(kind, values).items()}
    return found
