"""Arenas: which of a few buffers holds each temporary, and at which offset once sizes are known.

A dispatch must not read and write the same arena (WebGPU forbids one buffer bound read-only and
read-write in one dispatch, even where the ranges do not overlap).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIGNMENT = 256  # bytes: minStorageBufferOffsetAlignment of every WebGPU device

ARENAS = 8  # more save little
MOST_ARENAS = 16  # of a plan; taken only where values would conflict in fewer


def assign_arenas(conflicts: Sequence[set[int]], lives: Sequence[tuple[int, int, int]]) -> list[int]:
    """Arenas for values so that none shares one with a value it conflicts with, and all together are small.

    Values go, the largest first, into the arena that grows least by it, measured in two ways; the division that
    takes fewer bytes is returned. On klein's denoiser that comes within a tenth of the bytes that are alive at
    once, on its decoder it meets them.

    Args:
        conflicts: for each temporary, the temporaries that stand on the other side of a dispatch.
        lives: its (bytes, first, last).

    Returns:
        An arena for each temporary, 0 upward.
    """
    divisions = (_by_gaps(conflicts, lives), _by_sums(conflicts, lives))
    return min(divisions, key=lambda arenas: _total(lives, arenas))


def _total(lives: Sequence[tuple[int, int, int]], arenas: Sequence[int]) -> int:
    return sum(place([(size, arena, *life) for (size, *life), arena in zip(lives, arenas, strict=True)])[1].values())


def _by_size(lives: Sequence[tuple[int, int, int]]) -> list[int]:
    return sorted(range(len(lives)), key=lambda i: (-lives[i][0], lives[i][1], i))


def _by_sums(conflicts: Sequence[set[int]], lives: Sequence[tuple[int, int, int]]) -> list[int]:
    """An arena grows by as much as the greatest sum of bytes alive in it does."""
    end = max((last for _, _, last in lives), default=0) + 1
    busy: list[np.ndarray] = []  # live bytes of each arena at each dispatch
    chosen = [-1] * len(lives)
    for index in _by_size(lives):
        size, first, last = lives[index]
        taken = {chosen[other] for other in conflicts[index]}
        free = [arena for arena in range(len(busy)) if arena not in taken]
        growth = {arena: max(0, busy[arena][first : last + 1].max() + size - busy[arena].max()) for arena in free}
        best = min(free, key=lambda arena: (growth[arena], -busy[arena].max()), default=len(busy))
        if best == len(busy):
            busy.append(np.zeros(end, np.int64))
        busy[best][first : last + 1] += size
        chosen[index] = best
    return chosen


def _by_gaps(conflicts: Sequence[set[int]], lives: Sequence[tuple[int, int, int]]) -> list[int]:
    """An arena grows by what does not fit into the gaps between those already there; a new one may be better."""
    arenas = [-1] * len(lives)
    offsets = [0] * len(lives)
    members: list[list[int]] = []
    sizes: list[int] = []
    for index in _by_size(lives):
        size, first, last = lives[index]
        taken = {arenas[other] for other in conflicts[index]}
        choices = []
        for arena, inside in enumerate(members):
            if arena not in taken:
                busy = [(offsets[i], lives[i][0]) for i in inside if lives[i][1] <= last and first <= lives[i][2]]
                offset = _lowest_gap(size, busy)
                growth = max(0, offset + size - sizes[arena])
                # Sharing no moment with anything there is safest: the runtime places by time, not by size.
                choices.append((growth, bool(busy), arena, offset))
        if (not choices and len(members) < MOST_ARENAS) or (len(members) < ARENAS and min(choices)[0] >= size):
            choices = [(size, False, len(members), 0)]
            members.append([])
            sizes.append(0)
        if not choices:
            raise ValueError(f"temporaries cannot be divided among {MOST_ARENAS} arenas")
        _, _, arenas[index], offsets[index] = min(choices)
        members[arenas[index]].append(index)
        sizes[arenas[index]] = max(sizes[arenas[index]], offsets[index] + size)
    return arenas


def _lowest_gap(size: int, busy: Sequence[tuple[int, int]]) -> int:
    """The lowest aligned offset where `size` bytes overlap none of the (offset, bytes) in `busy`."""
    offset = 0
    for begin, length in sorted(busy):
        if offset + size <= begin:
            break
        offset = max(offset, -(-(begin + length) // ALIGNMENT) * ALIGNMENT)
    return offset


def place(values: Sequence[tuple[int, int, int, int]]) -> tuple[list[int], dict[int, int]]:
    """Offsets of temporaries in their arenas.

    Args:
        values: (bytes, arena, first, last) of each temporary, in plan order.

    Returns:
        Byte offset of each, and the size of each arena: the lowest 256-byte-aligned offset where the
        value overlaps no value that is alive at the same time, values taken by (first, index).
    """
    offsets = [0] * len(values)
    sizes: dict[int, int] = {}
    placed: dict[int, list[int]] = {}
    for index in sorted(range(len(values)), key=lambda i: (values[i][2], i)):
        size, arena, first, last = values[index]
        busy = [
            (offsets[i], values[i][0]) for i in placed.get(arena, []) if values[i][2] <= last and first <= values[i][3]
        ]
        offset = _lowest_gap(size, busy)
        offsets[index] = offset
        placed.setdefault(arena, []).append(index)
        sizes[arena] = max(sizes.get(arena, 0), -(-(offset + size) // ALIGNMENT) * ALIGNMENT)
    return offsets, sizes
