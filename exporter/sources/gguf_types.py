"""The tensor types of GGUF files that are read, to the byte.

A row is a run of blocks along K. A packed block is a float16 scale d and its codes, lowest bits first,
in the same order as the bundle keeps them, so codes move from file to bundle without being touched:

    Q1_0   1 bit a value, 1 is +d and 0 is −d
    Q2_0   2 bits a value, (code − 1)·d
    Q8_0   32 signed bytes, code·d
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.errors import BadCheckpoint
from exporter.packing import BITS, GROUP
from exporter.tensorfile import DTYPES, FLOATS, widen

USABLE = "F16, BF16, F32, Q8_0, Q1_0 or Q2_0"


@dataclass(frozen=True)
class TensorType:
    """One meaning of a type id: `bytes` for every `group` values; `kind` as in packing.py where one fits."""

    name: str
    group: int
    bytes: int
    kind: str | None = None
    readable: bool = True


# Type id -> its meanings. Two writers gave ids 40 and 42 to different blocks; a tensor's byte length tells.
TYPES: dict[int, tuple[TensorType, ...]] = {
    0: (TensorType("F32", 1, 4),),
    1: (TensorType("F16", 1, 2),),
    8: (TensorType("Q8_0", 32, 34),),
    30: (TensorType("BF16", 1, 2),),
    40: (TensorType("Q1_0", 32, 6, "binary"), TensorType("NVFP4", 64, 36, readable=False)),
    41: (TensorType("Q1_0", 128, 18, "binary"),),
    42: (TensorType("Q2_0", 64, 18, "ternary"), TensorType("Q2_0", 128, 34, "ternary")),
    142: (TensorType("Q2_0", 128, 34, "ternary"),),
}
# Ids that are known but not read, by name.
REFUSED: dict[int, str] = {
    **{2: "Q4_0", 3: "Q4_1", 4: "Q4_2", 5: "Q4_3", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"},
    **{16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M"},
    **{31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0"},
    **{36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 143: "PTQ1_0"},
}


def decode(kind: TensorType, raw: np.ndarray) -> np.ndarray:
    """u8[rows, row bytes] -> f32[rows, K]: the values that the blocks stand for."""
    if kind.name in FLOATS:
        return widen(raw.view(DTYPES[kind.name]), kind.name)
    scales, codes = _split(kind, raw)
    if kind.name == "Q8_0":
        values = codes.view(np.int8).astype(np.float32)
    elif kind.kind == "binary":
        values = 2 * np.unpackbits(codes, axis=-1, bitorder="little").astype(np.float32) - 1
    else:
        pairs = codes[..., None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
        values = pairs.reshape(*codes.shape[:-1], kind.group).astype(np.float32) - 1
    with np.errstate(invalid="ignore"):  # 0 times infinity; storing refuses what is not finite by name
        values *= scales.astype(np.float32)[..., None]
    return values.reshape(len(raw), -1)


def repack(kind: TensorType, raw: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray] | None:
    """u8[rows, row bytes] -> codes u32[rows, words], scales f16[rows, K/128], or None if they do not fit.

    They do not fit if K is no multiple of 128, if the smaller blocks that make up a group of 128 differ
    in scale, or if a ternary code is 3 (which stands for +2d). `kind.kind` must be binary or ternary.

    Raises BadCheckpoint, starting with `where`, for a scale that is not finite.
    """
    scales, codes = _split(kind, raw)
    if not np.isfinite(scales).all():
        bad = scales[~np.isfinite(scales)]
        raise BadCheckpoint(f"{where}: expected finite scales, found {bad.size} like {bad.flat[0]}")
    if scales.shape[1] * kind.group % GROUP:
        return None
    scales = scales.reshape(len(raw), -1, GROUP // kind.group)
    if (scales != scales[..., :1]).any():
        return None
    if BITS[kind.kind] == 2 and (codes & codes >> 1 & 0x55).any():
        return None
    return codes.reshape(len(raw), -1).view("<u4"), scales[..., 0]


def _split(kind: TensorType, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u8[rows, row bytes] -> scales f16[rows, blocks], codes u8[rows, blocks, block bytes − 2], contiguous."""
    blocks = raw.reshape(len(raw), -1, kind.bytes)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]
    return scales, np.ascontiguousarray(blocks[..., 2:])
