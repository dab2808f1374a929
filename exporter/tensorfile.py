"""Reading safetensors files one tensor at a time, with every claim of the header checked.

A file is a u64 header length n, n bytes of JSON (name -> dtype, shape, data_offsets relative to byte
8 + n) and the tensors' bytes, little-endian, without holes or overlaps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.errors import BadCheckpoint, BitbrushError

# BF16 is read as its 16 bits; numpy has no such type.
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
}
FLOATS = ("F64", "F32", "F16", "BF16")
HEADER_LIMIT = 100_000_000
_BLOCK_VALUES = 1 << 18  # widened at a time, so that memory holds the f32 tensor alone


def widen(array: np.ndarray, dtype: str) -> np.ndarray:
    """Values as stored in one of FLOATS (BF16 as u16 bits), widened or rounded to f32."""
    if dtype == "BF16":
        bits = array.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which storing refuses by name
        return array.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Entry:
    """One tensor of a file; `start` counts bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


class TensorFile:
    """A safetensors file. Opening reads and checks the header only.

    Args:
        path: of the file.
        label: how messages call it, e.g. the path inside the checkpoint.
        error: class of the errors raised, BadCheckpoint or BadBundle.
    """

    def __init__(self, path: Path, label: str, error: type[BitbrushError] = BadCheckpoint) -> None:
        self.path, self.label, self._error = path, label, error
        try:
            self.size = path.stat().st_size
            with path.open("rb") as file:
                prefix = file.read(8)
                length = int.from_bytes(prefix, "little")
                if len(prefix) < 8 or length > min(self.size - 8, HEADER_LIMIT):
                    raise self._bad(
                        f"expected a safetensors header, found a length of {length} bytes in a file of"
                        f" {self.size} bytes (truncated, or no safetensors file)"
                    )
                header = file.read(length)
        except OSError as problem:
            raise self._bad(f"expected a readable file, found: {problem.strerror or problem}") from None
        self.entries = self._check(self._parse(header), 8 + length)

    def read(self, name: str) -> np.ndarray:
        """The tensor as stored (BF16 as u16 bits). Raises if it is not in the file."""
        entry = self._entry(name)
        array = np.empty(entry.shape, DTYPES[entry.dtype])
        self._fill(name, array.reshape(-1), 0)
        return array

    def read_f32(self, name: str) -> np.ndarray:
        """A floating-point tensor widened or rounded to f32."""
        entry = self._entry(name)
        if entry.dtype not in FLOATS:
            raise self._bad(f"tensor {name}: expected a dtype among {', '.join(FLOATS)}, found {entry.dtype}")
        values = np.empty(entry.shape, np.float32)
        flat = values.reshape(-1)
        for start in range(0, flat.size, _BLOCK_VALUES):  # in blocks: no second copy of a large tensor
            part = np.empty(min(_BLOCK_VALUES, flat.size - start), DTYPES[entry.dtype])
            self._fill(name, part, start * part.itemsize)
            flat[start : start + len(part)] = widen(part, entry.dtype)
        return values

    def _fill(self, name: str, array: np.ndarray, start: int) -> None:
        """Read into a one-dimensional array, from byte `start` of a tensor on."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.entries[name].start + start)
                # A view that shares memory, so that nothing is copied; empty tensors have no bytes to read.
                if array.nbytes and file.readinto(array.view(np.uint8)) != array.nbytes:
                    raise self._bad(f"tensor {name}: expected {array.nbytes} more bytes, found the end of the file")
        except OSError as problem:
            raise self._bad(f"tensor {name}: expected readable data, found: {problem.strerror}") from None

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise self._bad(f"expected tensor {name}, found {len(self.entries)} others")
        return self.entries[name]

    def _parse(self, header: bytes) -> dict:
        def unique(pairs: list[tuple[str, object]]) -> dict:
            keys = [key for key, _ in pairs]
            for key in keys:
                if len(keys) != len(set(keys)) and keys.count(key) > 1:
                    raise self._bad(f"expected names once in the header, found {key} twice")
            return dict(pairs)

        try:
            parsed = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
        except (ValueError, RecursionError) as problem:
            raise self._bad(f"expected a JSON header, found: {problem}") from None
        if not isinstance(parsed, dict):
            raise self._bad(f"expected a JSON object as header, found {type(parsed).__name__}")
        parsed.pop("__metadata__", None)
        return parsed

    def _check(self, header: dict, data_start: int) -> dict[str, Entry]:
        entries = {name: self._check_entry(name, raw, data_start) for name, raw in header.items()}
        end, before = data_start, "the header"
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].bytes)):
            if entry.start != end:
                problem = "an overlap" if entry.start < end else "a hole"
                raise self._bad(f"tensor {name}: expected data right after {before}, found {problem}")
            end, before = entry.start + entry.bytes, name
        if end != self.size:
            what = "truncated" if end > self.size else "bytes that belong to no tensor"
            raise self._bad(f"expected {end} bytes as the header says, found {self.size} ({what})")
        return entries

    def _check_entry(self, name: str, raw: object, data_start: int) -> Entry:
        if not isinstance(raw, dict) or not {"dtype", "shape", "data_offsets"} <= set(raw):
            raise self._bad(f"tensor {name}: expected dtype, shape and data_offsets, found {_short(raw)}")
        dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self._bad(f"tensor {name}: expected a known dtype, found {_short(dtype)}")
        if not _counts(shape):
            raise self._bad(f"tensor {name}: expected a list of sizes as shape, found {_short(shape)}")
        if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._bad(f"tensor {name}: expected data_offsets [begin, end], found {_short(offsets)}")
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if offsets[1] - offsets[0] != size:
            raise self._bad(
                f"tensor {name}: expected {size} bytes for {dtype} {shape}, found data_offsets of"
                f" {offsets[1] - offsets[0]} bytes"
            )
        if data_start + offsets[1] > self.size:
            raise self._bad(
                f"tensor {name}: expected data up to byte {data_start + offsets[1]}, found a file of"
                f" {self.size} bytes (truncated?)"
            )
        return Entry(dtype, tuple(shape), data_start + offsets[0], size)

    def _bad(self, message: str) -> BitbrushError:
        return self._error(f"{self.label}: {message}")


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
