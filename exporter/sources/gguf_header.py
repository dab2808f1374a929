"""The header of GGUF files: the magic `GGUF`, u32 version, u64 tensor count, u64 key count, the keys with
their values, then per tensor: name, u32 number of axes, u64 sizes (fastest first), u32 type, u64 offset.
Texts are a u64 length and UTF-8. All little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from exporter.errors import BadCheckpoint

VERSIONS = (2, 3)
KEPT_KEYS = ("general.architecture", "general.alignment", "split.count")
LONGEST_TEXT = 1 << 16
# Ids of value types: scalars by their struct code, texts, arrays.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
SMALLEST_KEY, SMALLEST_INFO = 13, 32  # bytes


@dataclass(frozen=True)
class Info:
    """A tensor as its header describes it; `offset` counts from the start of the data."""

    name: str
    type_id: int
    shape: tuple[int, ...]
    offset: int


def read_header(path: Path, label: str) -> tuple[dict[str, object], list[Info], int]:
    """The values of KEPT_KEYS that the file has, its tensors in order, and where the header ends in bytes.

    Raises BadCheckpoint, starting with `label`, for damage, and OSError.
    """
    with path.open("rb") as file:
        keys, infos = _Reader(file, path.stat().st_size, label).parse()
        return keys, infos, file.tell()


class _Reader:
    """A reader of the header's fields that notices the end of the file."""

    def __init__(self, file: BinaryIO, size: int, label: str) -> None:
        self.file, self.size, self.label = file, size, label

    def parse(self) -> tuple[dict[str, object], list[Info]]:
        """The kept keys and all tensor descriptions; leaves the file at the header's end."""
        magic = self.file.read(4)
        if magic != b"GGUF":
            raise self._bad(f"expected the magic GGUF, found {magic!r}")
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            found = "a big-endian file" if swapped else f"{version}"
            raise self._bad(f"expected GGUF version 2 or 3, found {found}")
        tensors, keys = self.number("Q"), self.number("Q")
        if not 1 <= tensors <= self.size // SMALLEST_INFO or keys > self.size // SMALLEST_KEY:
            raise self._bad(
                f"expected a header with tensors, found counts of {tensors} tensors and {keys} keys in a file of"
                f" {self.size} bytes"
            )
        kept = {}
        for _ in range(keys):
            key = self.text("key")
            value = self.value(key, self.number("I"))
            if key in KEPT_KEYS:
                kept[key] = value
        infos: dict[str, Info] = {}
        for _ in range(tensors):
            info = self.info()
            if info.name in infos:
                raise self._bad(f"expected tensor names once, found {info.name} twice")
            infos[info.name] = info
        return kept, list(infos.values())

    def info(self) -> Info:
        name = self.text("tensor name")
        axes = self.number("I")
        if not 1 <= axes <= 4:
            raise self._bad(f"tensor {name}: expected 1 to 4 axes, found {axes}")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        if not all(shape):
            raise self._bad(f"tensor {name}: expected sizes of at least 1, found shape {list(shape)}")
        return Info(name, self.number("I"), shape, self.number("Q"))

    def value(self, key: str, kind: int, inside_array: bool = False) -> object:
        """A value of a key; arrays (vocabularies) and long strings are passed over."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            if key in KEPT_KEYS:
                return self.text(key)
            return self.skip(self.number("Q"))
        if kind == ARRAY and not inside_array:
            item, count = self.number("I"), self.number("Q")
            if item in SCALARS:
                return self.skip(count * struct.calcsize(SCALARS[item]))
            for _ in range(count):
                self.value(key, item, inside_array=True)
            return None
        raise self._bad(f"key {key}: expected a known value type, found {kind}")

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def text(self, what: str) -> str:
        length = self.number("Q")
        if length > LONGEST_TEXT:
            raise self._bad(f"expected a {what} of at most {LONGEST_TEXT} bytes, found {length}")
        raw = self.take(length)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._bad(f"expected a {what} in UTF-8, found {raw[:40]!r}") from None

    def take(self, count: int) -> bytes:
        self._require(count)
        return self.file.read(count)

    def skip(self, count: int) -> None:
        self._require(count)
        self.file.seek(count, 1)

    def _require(self, count: int) -> None:
        at = self.file.tell()
        if at + count > self.size:
            raise self._bad(
                f"expected {count} more bytes of header at byte {at}, found the end of the file at {self.size}"
                " (cut in the middle?)"
            )

    def _bad(self, message: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self.label}: {message}")
