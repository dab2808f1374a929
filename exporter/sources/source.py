"""What every kind of checkpoint offers: the tensors of one component under diffusers' or transformers' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from exporter.packing import Parts


@dataclass(frozen=True)
class Given:
    """A matrix that the checkpoint already holds packed, in the bundle's own layout.

    kind            binary, ternary or int4 (packing.py)
    group           values per scale along K
    parts           ".codes" u32, ".scales" f16 and, for int4, ".offsets" f16, as `packing.pack` makes them
    relative_error  ‖parts − checkpoint‖ / ‖checkpoint‖ (Frobenius) that rounding scales or offsets to
                    float16 costs; 0: exact
    """

    kind: str
    group: int
    parts: Parts
    relative_error: float = 0.0


class Source(Protocol):
    """The tensors of one component; opened files are read one tensor at a time."""

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that `names` lists, in the checkpoint's layout ([N, K] for matrices)."""

    def label(self, name: str) -> str:
        """The file that holds a tensor, as messages call it: its path inside the checkpoint."""

    def tensor(self, name: str) -> np.ndarray:
        """The tensor as f32. Packed matrices come out as code · scale + offset. Raises BadCheckpoint."""

    def given(self, name: str) -> Given | None:
        """The matrix with the codes that the checkpoint holds; None if it is not packed so or float16 fails it.

        Scales and offsets are those of the checkpoint; what rounding any of them to float16 costs is in
        `relative_error`. Raises BadCheckpoint.
        """
