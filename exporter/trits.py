"""Ternary codes on disk: five trits a byte, 1.6 bits a weight where the GPU's words have 2.

Codes are u32[N, K/16] words of sixteen 2-bit codes (packing.py), taken row after row without regard to
where rows end. A unit is 80 codes: 5 words, stored as 16 bytes. Byte i of a unit holds its codes
5i … 5i + 4 as c0 + 3·c1 + 9·c2 + 27·c3 + 81·c4, which is below 243. What is missing in the last unit is
code 1, a weight of 0. `webgpu_kernels/wgsl/expand_trits.wgsl` is the way back on the GPU.
"""

from __future__ import annotations

import math

import numpy as np

from exporter.errors import BadBundle, BadCheckpoint

UNIT_BYTES, UNIT_WORDS = 16, 5
VALUES = 243  # 3⁵: what five trits can be
_ZEROS = np.uint32(0x55555555)  # a word of code 1
_BLOCK_UNITS = 1 << 16  # done at a time, to bound memory

_DIGITS = np.arange(256)[:, None] // 3 ** np.arange(5) % 3
# Byte -> its five codes as ten bits, and back; 255 marks what has a code 3.
_TEN_BITS = (_DIGITS << 2 * np.arange(5)).sum(axis=1).astype(np.uint32)
_BYTES = np.full(1024, 255, np.uint8)
_BYTES[_TEN_BITS[:VALUES]] = np.arange(VALUES)
# Of the sixteen ten-bit fields of a unit: the word in which each begins and at which bit.
_FIELDS = [divmod(10 * field, 32) for field in range(UNIT_BYTES)]


def trits_shape(codes_shape: tuple[int, ...] | list[int]) -> tuple[int, int]:
    """Shape (units, 16) of the bytes that store u32 codes of `codes_shape`."""
    return -(-math.prod(codes_shape) // UNIT_WORDS), UNIT_BYTES


def pack_trits(codes: np.ndarray, name: str) -> np.ndarray:
    """u32[N, K/16] codes -> u8[units, 16]. Raises BadCheckpoint, naming `name`, if a code is 3."""
    words = np.ascontiguousarray(codes, np.uint32).reshape(-1)
    trits = np.empty(trits_shape(codes.shape), np.uint8)
    for start in range(0, len(trits), _BLOCK_UNITS):
        block = words[start * UNIT_WORDS : (start + _BLOCK_UNITS) * UNIT_WORDS]
        block = np.append(block, np.full(-len(block) % UNIT_WORDS, _ZEROS, np.uint32))
        columns = np.ascontiguousarray(block.reshape(-1, UNIT_WORDS).T)
        for index, (word, shift) in enumerate(_FIELDS):
            field = columns[word] >> np.uint32(shift)
            if shift > 22:  # it ends in the next word
                field |= columns[word + 1] << np.uint32(32 - shift)
            trits[start : start + _BLOCK_UNITS, index] = _BYTES[field & np.uint32(1023)]
    if trits.max(initial=0) >= VALUES:
        raise BadCheckpoint(f"{name}: expected ternary codes 0, 1 and 2, found code 3")
    return trits


def unpack_trits(trits: np.ndarray, codes_shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """u8[units, 16] as `check_trits` allows them -> u32 codes of `codes_shape`, which must fit."""
    if trits.shape != trits_shape(codes_shape):
        raise ValueError(f"trits: expected shape {trits_shape(codes_shape)} for {codes_shape}, found {trits.shape}")
    words = np.empty((len(trits), UNIT_WORDS), np.uint32)
    for start in range(0, len(trits), _BLOCK_UNITS):
        fields = _TEN_BITS[trits[start : start + _BLOCK_UNITS].T]
        columns = np.zeros((UNIT_WORDS, fields.shape[1]), np.uint32)
        for field, (word, shift) in zip(fields, _FIELDS, strict=True):
            columns[word] |= field << np.uint32(shift)
            if shift > 22:
                columns[word + 1] |= field >> np.uint32(32 - shift)
        words[start : start + _BLOCK_UNITS] = columns.T
    return words.reshape(-1)[: math.prod(codes_shape)].reshape(codes_shape)


def check_trits(trits: np.ndarray, name: str) -> None:
    """Raise BadBundle, naming `name`, if a byte is none that `pack_trits` writes."""
    if trits.max(initial=0) >= VALUES:
        at = int(np.argmax(trits.reshape(-1) >= VALUES))
        raise BadBundle(
            f"tensor {name}: expected five trits a byte, below {VALUES}, found {trits.reshape(-1)[at]} at byte {at}"
        )
