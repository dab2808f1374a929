"""Reading the tensors of GGUF files a few rows at a time, with every claim of the header checked.

The tensors' data follow the header (gguf_header.py), each at a multiple of `general.alignment` and right
after the one before. Nothing but these offsets says how long a tensor is, and with it which of two blocks
an ambiguous type id means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.errors import BadCheckpoint
from exporter.sources.gguf_header import Info, read_header
from exporter.sources.gguf_types import REFUSED, TYPES, USABLE, TensorType

ALIGNMENT = 32  # where the file does not say otherwise
_BLOCK_VALUES = 1 << 21  # rows are read in blocks of about so many values, to bound memory


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `shape` slowest axis first, `start` in bytes from the start of the file."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one run along the last axis."""
        return self.shape[-1] // self.type.group * self.type.bytes


class GgufFile:
    """A GGUF file. Opening reads and checks the header only.

    tensors       name -> GgufTensor
    architecture  the key general.architecture, "" if there is none

    Raises BadCheckpoint, starting with `label`, for damage and for tensor types that are not read.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label
        try:
            keys, infos, end = read_header(path, label)
            size = path.stat().st_size
        except OSError as problem:
            raise self._bad(f"expected a readable file, found: {problem.strerror or problem}") from None
        self.architecture = _key(keys, "general.architecture", str, "", label)
        parts = _key(keys, "split.count", int, 1, label)
        if parts > 1:
            raise self._bad(f"expected a whole model, found one of {parts} parts; merge them into one file first")
        alignment = _key(keys, "general.alignment", int, ALIGNMENT, label)
        if alignment < 1 or alignment & (alignment - 1):
            raise self._bad(f"expected general.alignment to be a power of two, found {alignment}")
        for info in infos:
            self._check_type(info)
        self.tensors = self._place(infos, _padded(end, alignment), size, alignment)

    def rows(self, tensor: GgufTensor, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Read rows start..stop of a tensor in blocks: (first row − start, u8[rows, row_bytes])."""
        step = max(1, _BLOCK_VALUES // tensor.shape[-1])
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.start + start * tensor.row_bytes)
                for row in range(start, stop, step):
                    raw = np.empty((min(step, stop - row), tensor.row_bytes), np.uint8)
                    if file.readinto(raw.reshape(-1)) != raw.size:
                        raise self._bad(f"tensor {tensor.name}: expected {stop} rows, found the end of the file")
                    yield row - start, raw
        except OSError as problem:
            raise self._bad(f"tensor {tensor.name}: expected readable data, found: {problem.strerror}") from None

    def _check_type(self, info: Info) -> None:
        if info.type_id not in TYPES:
            found = REFUSED.get(info.type_id, f"type id {info.type_id}")
            raise self._refused(info.name, found)
        columns, meanings = info.shape[-1], TYPES[info.type_id]
        if all(columns % meaning.group for meaning in meanings):
            smallest = min(meaning.group for meaning in meanings)
            raise self._bad(
                f"tensor {info.name}: expected rows of a multiple of {smallest} values for {meanings[0].name},"
                f" found shape {list(info.shape)}"
            )

    def _place(self, infos: list[Info], data_start: int, size: int, alignment: int) -> dict[str, GgufTensor]:
        """Settle what every type id means from the tensors' byte lengths, and where their data lie."""
        for info in infos:
            if info.offset % alignment:
                raise self._bad(
                    f"tensor {info.name}: expected an offset of a multiple of {alignment}, found {info.offset}"
                )
            if data_start + info.offset >= size:
                raise self._bad(
                    f"tensor {info.name}: expected data at byte {data_start + info.offset}, found the end of the"
                    f" file at {size} (cut in the middle?)"
                )
        ordered = sorted(infos, key=lambda info: info.offset)
        if ordered[0].offset:
            raise self._bad(f"tensor {ordered[0].name}: expected offset 0, found {ordered[0].offset}")
        fitting = {}
        for info, after in zip(ordered, [*ordered[1:], None], strict=True):
            stop = after.offset if after else size - data_start
            fitting[info.name] = self._fitting(info, stop - info.offset, alignment, after)
        settled = self._settled(infos, fitting)
        return {
            info.name: GgufTensor(info.name, settled[info.name], info.shape, data_start + info.offset) for info in infos
        }

    def _fitting(self, info: Info, span: int, alignment: int, after: Info | None) -> list[TensorType]:
        """The meanings of a tensor's type whose byte length is `span`, give or take the padding."""
        meanings = [meaning for meaning in TYPES[info.type_id] if info.shape[-1] % meaning.group == 0]
        lengths = {meaning: math.prod(info.shape) // meaning.group * meaning.bytes for meaning in meanings}
        fitting = [meaning for meaning, length in lengths.items() if length <= span <= _padded(length, alignment)]
        if not fitting:
            wanted = " or ".join(f"{length} ({meaning.name})" for meaning, length in lengths.items())
            found = f"{span} up to {f'tensor {after.name}' if after else 'the end of the file'}"
            if after is None and span < min(lengths.values()):
                found += " (cut in the middle?)"
            raise self._bad(f"tensor {info.name}: expected {wanted} bytes for {list(info.shape)}, found {found}")
        if not all(meaning.readable for meaning in fitting):
            raise self._refused(info.name, " or ".join(meaning.name for meaning in fitting))
        return fitting

    def _settled(self, infos: list[Info], fitting: dict[str, list[TensorType]]) -> dict[str, TensorType]:
        """One meaning per type id: short tensors, whose padding hides the difference, follow the others."""
        certain: dict[int, tuple[TensorType, str]] = {}
        for info in infos:
            if len(fitting[info.name]) == 1:
                meaning = fitting[info.name][0]
                known, other = certain.setdefault(info.type_id, (meaning, info.name))
                if known != meaning:
                    raise self._bad(
                        f"tensor {info.name}: expected {known.name} in groups of {known.group} as in tensor"
                        f" {other}, found the length of groups of {meaning.group}"
                    )
        for info in infos:
            if info.type_id not in certain:
                raise self._bad(
                    f"tensor {info.name}: expected a byte length that tells groups of 64 from groups of 128,"
                    f" found one that fits both ({list(info.shape)} of type id {info.type_id})"
                )
        return {info.name: certain[info.type_id][0] for info in infos}

    def _refused(self, name: str, found: str) -> BadCheckpoint:
        return self._bad(f"tensor {name}: expected {USABLE}, found {found}, which is not supported; use one of those")

    def _bad(self, message: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self.label}: {message}")


def _key(keys: dict[str, object], key: str, kind: type, default: object, label: str):
    value = keys.get(key, default)
    if type(value) is not kind:
        raise BadCheckpoint(f"{label}: key {key}: expected a value of type {kind.__name__}, found {value!r}")
    return value


def _padded(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment
