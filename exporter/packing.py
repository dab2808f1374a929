"""Low-bit storage of matrices: codes in 32-bit words with one scale (and offset) per group along K.

A matrix is f32[N, K], `y = x · Wᵀ`; a group is `group` consecutive values of one row. Formats (codes go
from the lowest bits of a word upwards, column j before column j + 1):

    binary    1 bit    code 1 is +s, 0 is −s
    ternary   2 bits   codes 0, 1, 2 are −s, 0, +s
    int4      4 bits   value = code · scale + offset
    int8      8 bits   value = code · scale + offset

Parts are named `.codes` (u32), `.scales` (f16) and, for int4 and int8, `.offsets` (f16). Codes are chosen
against the scale and offset after rounding to float16, because that is what the GPU multiplies with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from exporter.errors import BadCheckpoint

BITS = {"binary": 1, "ternary": 2, "int4": 4, "int8": 8}
AFFINE = ("int4", "int8")
GROUP = 128  # of binary and ternary, always
AFFINE_GROUPS = (128, 64, 32)  # of int4 and int8
F16_MAX = 65504.0
_BLOCK_VALUES = 1 << 21  # rows are packed in blocks of about so many values, to bound memory

Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Packed:
    """A packed matrix: its parts by suffix and how well they hold the original values."""

    parts: Parts
    lossless: bool  # unpack() gives every value back exactly
    relative_error: float  # ‖restored − original‖ / ‖original‖ (Frobenius)


def part_shapes(kind: str, rows: int, columns: int, group: int = GROUP) -> dict[str, tuple[str, tuple[int, int]]]:
    """suffix -> (safetensors dtype, shape) of the parts of a packed [rows, columns] matrix."""
    _check_layout(kind, columns, group, "matrix")
    parts = {
        ".codes": ("U32", (rows, columns * BITS[kind] // 32)),
        ".scales": ("F16", (rows, columns // group)),
    }
    if kind in AFFINE:
        parts[".offsets"] = ("F16", (rows, columns // group))
    return parts


def pack(kind: str, weight: np.ndarray, group: int = GROUP, name: str = "matrix") -> Packed:
    """Pack f32[N, K].

    Binary: s = mean |w|. Ternary: threshold and s that minimise the group's squared error. Both give
    matrices that already are s·{−1, +1} or s·{−1, 0, +1} back exactly if float16 can hold s.

    Raises BadCheckpoint, naming `name`, for values that are not finite, scales that float16 cannot
    hold, and K that is not a multiple of the group and of a 32-bit word's codes.
    """
    if weight.ndim != 2:
        raise BadCheckpoint(f"{name}: expected a matrix to pack as {kind}, found shape {list(weight.shape)}")
    rows, columns = weight.shape
    shapes = part_shapes_checked(kind, rows, columns, group, name)
    parts = {suffix: np.empty(shape, _DTYPES[dtype]) for suffix, (dtype, shape) in shapes.items()}
    lossless, error, norm = True, 0.0, 0.0
    for span in _row_blocks(rows, columns):
        values = np.ascontiguousarray(weight[span], np.float32).reshape(-1, columns // group, group)
        check_finite(values, name)
        codes, scales, offsets = _ENCODERS[kind](values, name)
        block = {".codes": _join_codes(codes.reshape(-1, columns), BITS[kind]), ".scales": scales}
        if offsets is not None:
            block[".offsets"] = offsets
        for suffix, part in block.items():
            parts[suffix][span] = part
        restored = unpack(kind, block, columns, group).reshape(values.shape)
        lossless = lossless and bool(np.array_equal(restored, values))
        error += float(np.sum(np.square(restored - values), dtype=np.float64))
        norm += float(np.sum(np.square(values), dtype=np.float64))
    return Packed(parts, lossless, (error / norm) ** 0.5 if norm else 0.0)


def unpack(kind: str, parts: Parts, columns: int, group: int = GROUP) -> np.ndarray:
    """Restore f32[N, columns] from the parts that `pack` made. The parts' shapes must fit `columns`."""
    codes = parts[".codes"]
    for suffix, (_, shape) in part_shapes(kind, len(codes), columns, group).items():
        if parts[suffix].shape != shape:
            raise ValueError(f"{kind} {suffix}: expected shape {shape}, found {parts[suffix].shape}")
    scales = parts[".scales"].astype(np.float32)
    offsets = parts[".offsets"] if kind in AFFINE else -scales
    return affine_values(codes, BITS[kind], 2 * scales if kind == "binary" else scales, offsets, group)


def affine_values(words: np.ndarray, bits: int, scales: np.ndarray, offsets: np.ndarray, group: int) -> np.ndarray:
    """f32[N, K] of code · scale + offset, computed in f32.

    Args:
        words: u32[N, K · bits / 32], codes of 1, 2, 4 or 8 bits from the lowest bits upwards.
        scales, offsets: [N, K / group] of any floating-point type.
    """
    out = np.empty((len(words), words.shape[1] * 32 // bits), np.float32)
    for span in _row_blocks(*out.shape):
        values = _split_codes(words[span], bits).astype(np.float32).reshape(-1, out.shape[1] // group, group)
        values *= scales[span].astype(np.float32)[..., None]
        values += offsets[span].astype(np.float32)[..., None]
        out[span] = values.reshape(-1, out.shape[1])
    return out


def exact_f16(values: np.ndarray) -> np.ndarray | None:
    """`values` as float16, or None if that would change any of them."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values) else None


def check_finite(values: np.ndarray, name: str) -> None:
    """Raise BadCheckpoint if `values` holds NaN or infinity."""
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)]
        raise BadCheckpoint(f"{name}: expected finite weights, found {bad.size} values like {bad.flat[0]}")


def part_shapes_checked(kind: str, rows: int, columns: int, group: int, name: str):
    """`part_shapes` whose error names the tensor."""
    _check_layout(kind, columns, group, name)
    return part_shapes(kind, rows, columns, group)


_DTYPES = {"U32": np.uint32, "F16": np.float16, "F32": np.float32}


def _check_layout(kind: str, columns: int, group: int, name: str) -> None:
    groups = AFFINE_GROUPS if kind in AFFINE else (GROUP,)
    if group not in groups or columns % group or not columns:
        allowed = " or ".join(map(str, groups))
        raise BadCheckpoint(
            f"{name}: expected K to be a multiple of a group of {allowed} for {kind}, found K {columns}, group {group}"
        )


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_VALUES // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _join_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """u8[N, K] codes -> u32[N, K * bits / 32]."""
    if bits == 1:
        packed = np.packbits(codes, axis=1, bitorder="little")
    else:
        per_byte = 8 // bits
        packed = codes[:, ::per_byte].copy()
        for i in range(1, per_byte):
            packed |= codes[:, i::per_byte] << np.uint8(bits * i)
    return packed.view("<u4").astype(np.uint32, copy=False)


def _split_codes(words: np.ndarray, bits: int) -> np.ndarray:
    """u32[N, W] -> u8[N, W * 32 / bits] codes."""
    packed = np.ascontiguousarray(words, "<u4").view(np.uint8)
    if bits == 1:
        return np.unpackbits(packed, axis=1, bitorder="little")
    per_byte = 8 // bits
    codes = np.empty((len(packed), packed.shape[1] * per_byte), np.uint8)
    for i in range(per_byte):
        codes[:, i::per_byte] = (packed >> np.uint8(bits * i)) & np.uint8(2**bits - 1)
    return codes


def _to_f16(values: np.ndarray, what: str, name: str) -> np.ndarray:
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest > F16_MAX:
        raise BadCheckpoint(f"{name}: expected {what}s that float16 can hold (65504), found {largest:g}")
    return values.astype(np.float16)


def _encode_binary(values: np.ndarray, name: str):
    """f32[N, G, group] -> u8 codes, f16[N, G] scales, None."""
    # Means in float64: the sum of up to 128 equal float32 values is exact, so their mean is too.
    scales = _to_f16(np.abs(values).mean(axis=2, dtype=np.float64), "scale", name)
    return (values >= 0).astype(np.uint8), scales, None


def _encode_ternary(values: np.ndarray, name: str):
    """f32[N, G, group] -> u8 codes, f16[N, G] scales, None.

    Keeping the k largest magnitudes with s = their mean leaves a squared error of Σw² − (Σ kept)²/k, so
    the best k maximises (Σ kept)²/k.
    """
    magnitudes = np.abs(values)
    sums = np.cumsum(-np.sort(-magnitudes, axis=2), axis=2, dtype=np.float64)
    counts = np.arange(1, values.shape[2] + 1)
    best = np.argmax(sums * sums / counts, axis=2)
    scales = _to_f16(np.take_along_axis(sums, best[..., None], axis=2)[..., 0] / (best + 1), "scale", name)
    kept = magnitudes > 0.5 * scales.astype(np.float32)[..., None]
    return (1 + np.sign(values) * kept).astype(np.uint8), scales, None


def _encode_affine(values: np.ndarray, levels: int, name: str):
    """f32[N, G, group] -> u8 codes 0..levels, f16[N, G] scales and offsets; offset = the group's minimum."""
    low = values.min(axis=2)
    offsets = _to_f16(low, "offset", name)
    base = offsets.astype(np.float32)
    span = values.max(axis=2).astype(np.float64) - base
    scales = _to_f16(np.maximum(span, 0) / levels, "scale", name)
    step = scales.astype(np.float32)[..., None]
    codes = np.divide(values - base[..., None], step, out=np.zeros_like(values), where=step > 0)
    return np.clip(np.rint(codes), 0, levels).astype(np.uint8), scales, offsets


_ENCODERS = {
    "binary": _encode_binary,
    "ternary": _encode_ternary,
    "int4": lambda values, name: _encode_affine(values, 15, name),
    "int8": lambda values, name: _encode_affine(values, 255, name),
}
