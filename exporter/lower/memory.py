"""Arenas: which of a few buffers holds each temporary, and at which offset once sizes are known.

A dispatch must not read and write the same arena (WebGPU forbids one buffer bound read-only and
read-write in one dispatch, even where the ranges do not overlap).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIGNMENT = 256  # bytes: minStorageBufferOffsetAlignment of every WebGPU device


def assign_arenas(conflicts: Sequence[set[int]], lives: Sequence[tuple[int, int, int]]) -> list[int]:
    """Divide temporaries so that none shares an arena with one it conflicts with, and all arenas take few bytes.

    Args:
        conflicts: for each temporary, the temporaries that stand on the other side of a dispatch.
        lives: its (bytes, first, last).

    Returns:
        An arena for each temporary, 0 upward: the smaller of two divisions, one into as few arenas as
        suffice, one that starts from the largest temporary.
    """
    divided = [_by_size(conflicts, lives)]
    for arenas in range(2, 9):
        few = _colour(conflicts, arenas)
        if few is not None:
            divided.insert(0, few)
            break
    return min(divided, key=lambda arenas: _total(lives, arenas))


def _total(lives: Sequence[tuple[int, int, int]], arenas: Sequence[int]) -> int:
    return sum(place([(life[0], arena, *life[1:]) for life, arena in zip(lives, arenas, strict=True)])[1].values())


def _by_size(conflicts: Sequence[set[int]], lives: Sequence[tuple[int, int, int]]) -> list[int]:
    """Each temporary, the largest first, goes where the arena's greatest sum of live bytes grows least."""
    end = max((last for _, _, last in lives), default=0) + 1
    busy: list[np.ndarray] = []  # live bytes of each arena at each dispatch
    chosen = [-1] * len(lives)
    for index in sorted(range(len(lives)), key=lambda i: (-lives[i][0], lives[i][1], i)):
        size, first, last = lives[index]
        taken = {chosen[other] for other in conflicts[index]}
        free = [arena for arena in range(len(busy)) if arena not in taken]
        growth = {arena: max(0, busy[arena][first : last + 1].max() + size - busy[arena].max()) for arena in free}
        best = min(free, key=lambda arena: (growth[arena], -busy[arena].max()), default=None)
        if best is None:
            best = len(busy)
            busy.append(np.zeros(end, np.int64))
        busy[best][first : last + 1] += size
        chosen[index] = best
    return chosen


def _colour(conflicts: Sequence[set[int]], arenas: int, budget: int = 20_000) -> list[int] | None:
    colours: list[int] = [-1] * len(conflicts)
    forbidden: list[dict[int, int]] = [{} for _ in conflicts]
    stack: list[tuple[int, int]] = []
    pending = set(range(len(conflicts)))
    start = 0
    while pending:
        budget -= 1
        if budget < 0:
            return None
        node = min(pending, key=lambda n: (-len(forbidden[n]), n))
        colour = next((c for c in range(start, arenas) if c not in forbidden[node]), None)
        if colour is None:
            if not stack:
                return None
            node, previous = stack.pop()
            _unpaint(conflicts, forbidden, colours, node)
            pending.add(node)
            start = previous + 1
            continue
        start = 0
        colours[node] = colour
        pending.discard(node)
        stack.append((node, colour))
        for other in conflicts[node]:
            forbidden[other][colour] = forbidden[other].get(colour, 0) + 1
    return colours


def _unpaint(conflicts, forbidden, colours, node: int) -> None:
    colour = colours[node]
    colours[node] = -1
    for other in conflicts[node]:
        forbidden[other][colour] -= 1
        if not forbidden[other][colour]:
            del forbidden[other][colour]


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
        busy = sorted(
            (offsets[i], offsets[i] + values[i][0])
            for i in placed.get(arena, [])
            if values[i][2] <= last and first <= values[i][3]
        )
        offset = 0
        for begin, end in busy:
            if offset + size <= begin:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[index] = offset
        placed.setdefault(arena, []).append(index)
        sizes[arena] = max(sizes.get(arena, 0), -(-(offset + size) // ALIGNMENT) * ALIGNMENT)
    return offsets, sizes
