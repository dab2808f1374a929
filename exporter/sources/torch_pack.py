"""What packs in a `torch.save` archive share: dense tensors, and matrices packed in tensors of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from exporter.sources.torch_pickle import TorchTensor
from exporter.sources.torch_zip import TorchArchive


class Packed(Protocol):
    """A packed matrix: its size; its tensors are further attributes."""

    rows: int
    columns: int


class TorchPack(ABC):
    """A `Source` whose subclass fills `_dense` and `_linears` and adds `_matrix` and `given`."""

    def __init__(self, archive: TorchArchive) -> None:
        self._archive = archive
        self._dense: dict[str, TorchTensor] = {}
        self._linears: dict[str, Packed] = {}

    def names(self) -> list[str]:
        """Names of all tensors, sorted; packed matrices under the names of their dense form."""
        return sorted([*self._dense, *self._linears])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [N, K] for packed matrices."""
        if name in self._linears:
            return (self._linears[name].rows, self._linears[name].columns)
        return self._dense[name].shape

    def label(self, name: str) -> str:
        """The file, for every tensor."""
        return self._archive.label

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as f32, packed matrices as the values that they stand for."""
        if name in self._linears:
            return self._matrix(name)
        return self._archive.read_f32(self._dense[name], name)

    @abstractmethod
    def _matrix(self, name: str) -> np.ndarray:
        """f32[N, K] of a packed matrix."""

    def _finite(self, name: str, part: str) -> np.ndarray:
        """A tensor of a packed matrix as f32 in its own shape, checked to be finite."""
        values = self._archive.read_f32(getattr(self._linears[name], part), name)
        if not np.isfinite(values).all():
            raise self._archive.bad_tensor(name, f"finite {part}", f"{values[~np.isfinite(values)][0]}")
        return values
