"""Files of full-size checkpoints, written a tensor at a time."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import torch
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

from tests.gguf_files import Q1_0, Q2_0, GgmlType, original_shapes

# Type id -> values and bytes of a block.
BLOCKS = {GgmlType.F32: (1, 4), GgmlType.F16: (1, 2), GgmlType.BF16: (1, 2), Q1_0: (128, 18), Q2_0: (64, 18)}


class SafetensorsWriter:
    """Writes tensors in the order of `add`; the header is put before them at the end, in the room left for it.

    With alignment 1 the data begin at an odd byte.
    """

    ROOM = 1 << 18

    def __init__(self, path: Path, alignment: int) -> None:
        self._room = self.ROOM + (1 if alignment == 1 else 0)
        self._file, self._header = path.open("wb"), {}
        self._file.seek(8 + self._room)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        header = json.dumps(self._header).encode()
        if len(header) > self._room:
            raise ValueError(f"expected a header of at most {self._room} bytes, found {len(header)}")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        self._file.close()

    def add(self, name: str, dtype: str, array: np.ndarray) -> None:
        start = self._file.tell() - 8 - self._room
        self._header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
        self._file.write(np.ascontiguousarray(array).data)


@contextmanager
def on_disk() -> Iterator[Callable[[np.ndarray], torch.Tensor]]:
    """What to call with arrays to get tensors that wait in temporary files until `torch.save` reads them."""
    with tempfile.TemporaryDirectory() as place:
        count = 0

        def keep(array: np.ndarray) -> torch.Tensor:
            nonlocal count
            count += 1
            file = Path(place) / f"{count}.npy"
            np.save(file, np.ascontiguousarray(array))
            return torch.from_numpy(np.load(file, mmap_mode="c"))

        yield keep


def original_rows() -> dict[str, list[tuple[str, int, int]]]:
    """Name in the original release -> (diffusers' name, first row, row after the last) of what makes up its rows.

    Told by diffusers' own converter, from tensors of the true number of rows in which every value says where it is.
    """
    shapes = original_shapes(3072, 5, 20, 128, 7680)
    shapes |= {name: (128,) for name, shape in shapes.items() if len(shape) == 1}
    names, ends = list(shapes), np.cumsum([shape[0] for shape in shapes.values()])
    numbered = {}
    for name, end in zip(names, ends, strict=True):
        rows = torch.arange(end - shapes[name][0], end, dtype=torch.float64)
        numbered[name] = rows if len(shapes[name]) == 1 else rows[:, None]
    found: dict[str, list[tuple[int, str, int, int]]] = {name: [] for name in names}
    for target, tensor in convert_flux2_transformer_checkpoint_to_diffusers(numbered).items():
        rows = tensor.reshape(-1).long().numpy()
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
        for start, stop in pairwise(cuts):
            name = names[int(np.searchsorted(ends, rows[start], side="right"))]
            found[name].append((int(rows[start]), target, int(start), int(stop)))
    return {name: [piece[1:] for piece in sorted(pieces)] for name, pieces in found.items()}


def write_gguf(
    path: Path, arch: str, layouts: dict[str, tuple[tuple[int, ...], int]], tensor: Callable[[str], np.ndarray]
) -> None:
    """Write a GGUF file with the library's writer.

    Args:
        layouts: name -> (shape of the values, type id).
        tensor: name -> array as it lies in the file.
    """
    writer = gguf.GGUFWriter(path, arch)
    for name, (shape, kind) in layouts.items():
        values, size = BLOCKS[kind]
        writer.add_tensor_info(name, shape, np.dtype(np.int8), math.prod(shape) // values * size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in layouts:
        writer.write_tensor_data(tensor(name))
    writer.close()
