"""Binary and ternary matrices of packs that write them as code · scale + offset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exporter.errors import BadCheckpoint
from exporter.packing import GROUP, exact_f16
from exporter.sources.source import Given

KINDS = {1: "binary", 2: "ternary"}  # bits a code


def low_bit(
    bits: int,
    words: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray,
    called: tuple[str, str, str],
    bad: Callable[[str, str], BadCheckpoint],
) -> Given | None:
    """A matrix of ±s (1 bit: scale 2s, offset −s) or −s, 0, +s (2 bits: scale s, offset −s), checked to be one.

    Args:
        words: u32[N, K · bits / 32], codes as in the bundle.
        scales, offsets: f32[N, K/128], finite.
        called: what the pack calls an offset, several, and its words.
        bad: makes the error of (expected, found).

    None if float16 does not hold the scales exactly.
    """
    one, several, units = called
    # −2 · offset never rounds; scale / 2 can.
    wrong = (offsets * np.float32(-2) if bits == 1 else -offsets) != scales
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        form = "-scale / 2" if bits == 1 else "-scale"
        raise bad(f"{several} equal to {form} for {KINDS[bits]}", f"scale {scales[at]:g} with {one} {offsets[at]:g}")
    if bits == 2:
        # Code 3 has both bits set.
        threes = words & (words >> np.uint32(1)) & np.uint32(0x55555555)
        if threes.any():
            raise bad("codes 0, 1 and 2", f"code 3 in {np.count_nonzero(threes)} {units}")
    half = exact_f16(scales / np.float32(2) if bits == 1 else scales)
    return None if half is None else Given(KINDS[bits], GROUP, {".codes": words, ".scales": half})
