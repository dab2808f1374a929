"""GGUF files of a FLUX.2-klein transformer or a Qwen3 text encoder as a Source (source.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from exporter.errors import BadCheckpoint
from exporter.packing import GROUP, part_shapes
from exporter.sources.gguf_container import GgufFile
from exporter.sources.gguf_names import View, canonical
from exporter.sources.gguf_types import decode, repack
from exporter.sources.source import Given, Source


def open_gguf(path: Path, label: str) -> Source:
    """Open a GGUF file; `label` is how messages call it, e.g. its path inside the checkpoint.

    Transformers may use the original release's names, also after `model.diffusion_model.`, or diffusers'.
    Under the original names the final modulation is taken as (shift, scale), as that release has it; a
    file does not say if its writer renamed diffusers' (scale, shift) without exchanging the halves.

    Raises BadCheckpoint for damage, tensor types that are not read, unknown and missing tensors.
    """
    file = GgufFile(path, label)
    return GgufSource(file, canonical(file))


class GgufSource:
    """The tensors of an opened file; see Source for the methods."""

    def __init__(self, file: GgufFile, views: dict[str, View]) -> None:
        self._file, self._views = file, views

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._views)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [N, K] for matrices."""
        return self._view(name).shape

    def label(self, name: str) -> str:
        """The file, as messages call it."""
        self._view(name)
        return self._file.label

    def tensor(self, name: str) -> np.ndarray:
        """The tensor as f32; packed matrices as code · scale."""
        view = self._view(name)
        kind = self._file.tensors[view.stored].type
        out = np.empty(view.shape, np.float32)
        rows = out.reshape(-1, view.shape[-1])
        for start, raw in self._blocks(view):
            rows[start : start + len(raw)] = decode(kind, raw)
        return out

    def given(self, name: str) -> Given | None:
        """Q1_0 as binary, Q2_0 as ternary; None for other types and where groups of 128 cannot hold the matrix.

        They cannot where blocks of fewer than 128 values differ in scale inside a group, K is no multiple
        of 128, or a two-bit code is 3. Raises BadCheckpoint for scales that are not finite.
        """
        view = self._view(name)
        stored = self._file.tensors[view.stored]
        if stored.type.kind is None or len(view.shape) != 2 or view.shape[1] % GROUP:
            return None
        shapes = part_shapes(stored.type.kind, *view.shape)
        codes, scales = np.empty(shapes[".codes"][1], np.uint32), np.empty(shapes[".scales"][1], np.float16)
        for start, raw in self._blocks(view):
            packed = repack(stored.type, raw, f"{self._file.label}: tensor {stored.name}")
            if packed is None:
                return None
            codes[start : start + len(raw)], scales[start : start + len(raw)] = packed
        return Given(stored.type.kind, GROUP, {".codes": codes, ".scales": scales})

    def _view(self, name: str) -> View:
        if name not in self._views:
            raise BadCheckpoint(f"{self._file.label}: expected tensor {name}, found {len(self._views)} others")
        return self._views[name]

    def _blocks(self, view: View) -> Iterator[tuple[int, np.ndarray]]:
        """(first row of the view, u8[rows, row bytes]) for all rows of a view, in order."""
        before = 0
        for start, stop in view.spans:
            for row, raw in self._file.rows(self._file.tensors[view.stored], start, stop):
                yield before + row, raw
            before += stop - start
