"""Workgroup counts as expressions (DESIGN.md §4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from webgpu_kernels.registry import Expression, Groups, Options

MAX_GROUPS = 32_768  # per axis; WebGPU allows 65,535


def folded(groups: Expression) -> tuple[Expression, Expression, Expression]:
    """A count of workgroups as (x, y, 1) with x at most MAX_GROUPS; the last row may be partly idle.

    The shader computes `workgroup_id.x + workgroup_id.y * num_workgroups.x` and checks its bound.
    """
    return ["max", ["min", groups, MAX_GROUPS], 1], ["max", ["ceil_div", groups, MAX_GROUPS], 1], 1


def threads(elements: Expression, workgroup_size: int = 256) -> tuple[Expression, Expression, Expression]:
    """The folded grid for one thread an element."""
    return folded(["ceil_div", elements, workgroup_size])


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tile: what a thread computes. Workgroups hold 64 threads, up to 8 of them along the columns.

    Where fewer column tiles than 8 exist, the threads go to further rows instead of idling; `wgsl/lib/tile.wgsl`
    computes the same split.
    """

    rows: int
    columns: int

    def context(self) -> dict[str, int]:
        return {"tile_rows": self.rows, "tile_columns": self.columns}

    def groups(self, columns: Expression, row_tiles: Expression) -> tuple[Expression, Expression, Expression]:
        """The grid for `columns` outputs a row and `row_tiles` tiles of rows."""
        tiles = ["ceil_div", columns, self.columns]
        across = ["min", tiles, 8]
        return ["ceil_div", tiles, across], ["ceil_div", row_tiles, ["floor_div", 64, across]], 1


def tiled(columns: Expression, rows: Expression) -> Callable[[Options], Groups]:
    """The grid of a variant whose context gives `tile_rows` and `tile_columns` of a workgroup."""

    def groups(numbers: Options) -> Groups:
        return ["ceil_div", columns, numbers["tile_columns"]], ["ceil_div", rows, numbers["tile_rows"]], 1

    return groups
