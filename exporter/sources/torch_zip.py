"""Reading what `torch.save` writes, without torch and without running anything that the file says.

The file is a zip archive with stored (uncompressed) entries: `NAME/data.pkl` is a pickle whose tensors
point into `NAME/data/KEY`, the raw little-endian storages. Opening reads the archive's directory and the
pickle (torch_pickle.py). Tensors come out as records; their bytes are read on demand by seeking, so
memory holds one tensor, never the file. Checksums of the archive are not verified.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from exporter.errors import BadCheckpoint
from exporter.sources.torch_pickle import TorchTensor, read_pickle, short
from exporter.tensorfile import DTYPES, FLOATS, widen

PICKLE_LIMIT = 100_000_000  # bytes; the pickle of a 4B model takes about 200 kB
_LOCAL_HEADER = 30  # bytes before the name in a zip entry's local header
_BLOCK_VALUES = 1 << 22  # values widened at a time


class TorchArchive:
    """A file written by `torch.save`.

    root  what was saved: plain data with a TorchTensor in place of each tensor

    Raises BadCheckpoint, calling the file `label`, for anything that is not such a file.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label
        try:
            self._size = path.stat().st_size
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except OSError as problem:
            raise self.bad(f"expected a readable file, found: {problem.strerror or problem}") from None
        except Exception as problem:  # zipfile raises half a dozen kinds for damaged directories
            raise self.bad(
                f"expected a zip archive of torch.save, found: {short(str(problem))} (truncated, or another format)"
            ) from None
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise self.bad("expected every name once in the archive, found some twice")
        pickles = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise self.bad(f"expected one data.pkl in the archive, found {len(pickles)}")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in self._entries:
            order = self._entry_bytes(f"{prefix}byteorder")
            if order != b"little":
                raise self.bad(f"expected byte order little, found {short(order)}")
        sizes = {name: dtype.itemsize for name, dtype in DTYPES.items()}
        data = self._entry_bytes(pickles[0])
        self.root = read_pickle(data, label, lambda key: self._locate(f"{prefix}data/{key}"), sizes)

    def read(self, tensor: TorchTensor, name: str) -> np.ndarray:
        """The tensor as stored, in C order (BF16 as u16 bits). `name` is what messages call it."""
        if 0 in tensor.shape:
            return np.empty(tensor.shape, DTYPES[tensor.dtype])
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride, strict=True))
        values = self._span(tensor, 0, reach + 1, name)
        sizes = zip(tensor.shape, tensor.stride, strict=True)
        strides = tuple(stride * values.itemsize if size > 1 else 0 for size, stride in sizes)
        view = np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
        return np.ascontiguousarray(view).reshape(tensor.shape)  # reshape: ascontiguousarray makes scalars [1]

    def read_f32(self, tensor: TorchTensor, name: str) -> np.ndarray:
        """A floating-point tensor widened or rounded to f32."""
        if tensor.dtype not in FLOATS:
            raise self.bad_tensor(name, f"a dtype among {', '.join(FLOATS)}", tensor.dtype)
        if not tensor.contiguous:
            return widen(self.read(tensor, name), tensor.dtype)
        out = np.empty(math.prod(tensor.shape), np.float32)
        for first in range(0, out.size, _BLOCK_VALUES):  # in blocks: no second copy of a large tensor
            count = min(_BLOCK_VALUES, out.size - first)
            out[first : first + count] = widen(self._span(tensor, first, count, name), tensor.dtype)
        return out.reshape(tensor.shape)

    def bad(self, message: str) -> BadCheckpoint:
        """An error about the file. Names in the message come out of the file, so it is cut and cleaned."""
        return BadCheckpoint(f"{self.label}: {short(message, 300)}")

    def bad_tensor(self, name: str, expected: str, found: object) -> BadCheckpoint:
        """The error for a tensor that is not as expected."""
        return self.bad(f"tensor {short(name)}: expected {expected}, found {short(found)}")

    def _span(self, tensor: TorchTensor, first: int, count: int, name: str) -> np.ndarray:
        """`count` values of the tensor's storage, from `first` values after its beginning."""
        values = np.empty(count, DTYPES[tensor.dtype])
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.start + (tensor.offset + first) * values.itemsize)
                if file.readinto(values.view(np.uint8)) != values.nbytes:
                    raise self.bad_tensor(name, f"{values.nbytes} bytes", "the end of the file")
        except OSError as problem:
            raise self.bad_tensor(name, "readable data", problem.strerror or problem) from None
        return values

    def _locate(self, name: str) -> tuple[int, int]:
        """(first byte, number of bytes) of a stored entry."""
        entry = self._entries.get(name)
        if entry is None:
            raise self.bad(f"expected the entry {short(name)} in the archive, found none")
        if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED:
            found = "it encrypted" if entry.flag_bits & 1 else "it compressed"
            raise self.bad(f"expected the entry {short(name)} stored as it is, found {found}")
        inside = 0 <= entry.header_offset < self._size
        header = self._bytes(entry.header_offset, _LOCAL_HEADER) if inside else b""
        if header[:4] != b"PK\x03\x04" or entry.file_size != entry.compress_size:
            raise self.bad(f"expected the entry {short(name)} at byte {entry.header_offset}, found other data")
        lengths = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = entry.header_offset + _LOCAL_HEADER + lengths
        if start + entry.file_size > self._size:
            raise self.bad(
                f"entry {short(name)}: expected data up to byte {start + entry.file_size}, found a file of"
                f" {self._size} bytes (truncated?)"
            )
        return start, entry.file_size

    def _entry_bytes(self, name: str) -> bytes:
        start, size = self._locate(name)
        if size > PICKLE_LIMIT:
            raise self.bad(f"entry {short(name)}: expected at most {PICKLE_LIMIT} bytes, found {size}")
        return self._bytes(start, size)

    def _bytes(self, start: int, size: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as problem:
            raise self.bad(f"expected a readable file, found: {problem.strerror or problem}") from None
