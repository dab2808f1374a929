"""Operand types that x is converted to before a matrix product, q, k and v before attention, as numpy computes them.

The kernels `to_f16`, `quantize`, `quantize_tiles`, `heads_to_f16` and `heads_to_int8` (families/operands.py) do the
same on the GPU; `Variant.converts` names the type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from webgpu_kernels.strided import indices

F16_MAX = 65_504.0
SEGMENT = 128  # columns that share a scale in "int8"
TILE = 64  # rows or tokens that stand together in "int8_tiles", "int8_heads" and "int8_heads_turned"
# Kernel and options by operand type (`CONVERSIONS` in site/js/runtime/conversions.js).
CONVERSIONS = {
    "f16": ("to_f16", {}),
    "int8": ("quantize", {"share": "segment"}),
    "int8_rows": ("quantize", {"share": "row"}),
    "int8_tiles": ("quantize_tiles", {}),
    "f16_heads": ("heads_to_f16", {"order": "tokens"}),
    "f16_heads_turned": ("heads_to_f16", {"order": "channels"}),
    "int8_heads": ("heads_to_int8", {"order": "tokens"}),
    "int8_heads_turned": ("heads_to_int8", {"order": "channels"}),
}


def has_scales(kind: str | None) -> bool:
    """Whether rows of this operand type come with scales."""
    return kind is not None and kind.startswith("int8")


def _codes(values: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Values, float32, as int8 codes with a scale of most / 127."""
    to_code = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return np.rint(values * to_code).clip(-127, 127).astype(np.int8)


def _as_words(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint32)


def converted(kind: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Rows as a variant binds them.

    Args:
        kind: "f16", "int8" (a scale a row and 128 columns), "int8_rows" (a scale a row) or "int8_tiles" (the same, in
            tiles of 64 rows, filled up with zeros: [tile][four of columns][row]).
        values: float32[rows, columns].

    Returns:
        The words u32[...] under "", and for int8 under "_scales" f32[rows, segments, 2]: the scale, max|x| / 127,
        and the scale times the sum of the codes; for int8_tiles the scale alone.
    """
    if kind == "int8_tiles":  # a head a row
        return converted_heads("int8_heads", values[:, None])
    if kind == "f16":
        halves = values.clip(-F16_MAX, F16_MAX).astype(np.float16)
        return {"": _as_words(halves)}
    rows, columns = values.shape
    segments = values.astype(np.float32).reshape(rows, -1, SEGMENT if kind == "int8" else columns)
    most = np.abs(segments).max(axis=2, keepdims=True)
    codes = _codes(segments, most)
    scales = most[..., 0] / np.float32(127)
    pairs = np.stack([scales, scales * codes.sum(axis=2, dtype=np.float32)], axis=-1).astype(np.float32)
    return {"": _as_words(codes), "_scales": pairs.reshape(-1)}


def converted_heads(kind: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Heads as a variant binds them.

    Args:
        kind: "f16_heads" ([head][token][channel]), "f16_heads_turned" ([head][channel][token], tokens filled up with
            the last one to a multiple of 8), "int8_heads" ([tile][head][four of channels][token], a scale a token) or
            "int8_heads_turned" ([tile][head][four of tokens][channel], a scale a channel and tile), both in tiles of
            64 tokens, filled up with zeros.
        values: float32[tokens, heads, channels].

    Returns:
        The words u32[...] under "", and for int8 under "_scales" f32[...]: max|x| / 127, of int8_heads_turned followed
        by the sums of a tile's codes.
    """
    if has_scales(kind):
        filled = np.pad(values.astype(np.float32), ((0, -len(values) % TILE), (0, 0), (0, 0)))
        tiles = filled.reshape(-1, TILE, *filled.shape[1:]).swapaxes(1, 2)  # [tile][head][token][channel]
        most = np.abs(tiles).max(axis=3 if kind == "int8_heads" else 2, keepdims=True)
        codes, scales = _codes(tiles, most), most / np.float32(127)
        if kind == "int8_heads":
            words = codes.reshape(*codes.shape[:3], -1, 4).swapaxes(2, 3)
        else:
            words = codes.reshape(*codes.shape[:2], TILE // 4, 4, -1).swapaxes(3, 4)
            scales = np.concatenate([scales, codes.sum(axis=2, keepdims=True, dtype=np.float32)], axis=2)
        return {"": _as_words(words), "_scales": scales.reshape(-1)}
    halves = values.clip(-F16_MAX, F16_MAX).astype(np.float16)
    if kind == "f16_heads_turned":
        halves = np.pad(halves, ((0, -len(halves) % 8), (0, 0), (0, 0)), "edge").transpose(1, 2, 0)
    else:
        halves = halves.transpose(1, 0, 2)
    return {"": _as_words(halves)}


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
        if "_heads" in kind:
            sizes = operand_sizes(name, uniforms, constants)
            places = indices(offset, sizes, (stride, uniforms[f"{name}_head_stride"], 1))
            arrays = converted_heads(kind, inputs[name][places])
        else:
            arrays = converted(kind, inputs[name][indices(offset, (uniforms["rows"], constants["K"]), (stride, 1))])
        found |= {name + suffix: array for suffix, array in arrays.items()}
    return found


def operand_sizes(name: str, uniforms: Mapping[str, int], constants: Mapping[str, Any]) -> tuple[int, int, int]:
    """Tokens, heads and channels of q, k or v of a dispatch of `attention`."""
    of = "q" if name == "q" else "kv"
    return uniforms[f"{of}_tokens"], constants["HEADS" if of == "q" else "KV_HEADS"], constants["HEAD_SIZE"]
