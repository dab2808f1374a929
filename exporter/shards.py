"""Shards: safetensors files of bounded size, named by the SHA-256 of their content.

Content names make shards shareable: two bundles with the same encoder hold files of the same names.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import BadBundle, BadCheckpoint
from exporter.tensorfile import TensorFile
from exporter.trits import check_trits

LIMIT = 32 * 1024 * 1024  # bytes of a shard file, header included
ALIGNMENT = 16  # of the data, and of every tensor behind tensors of whole multiples of 16 bytes
FOLDER = "shards"
_ENTRY_BYTES = 128  # generous size of a header entry without its name

NAMES = {np.dtype("<u4"): "U32", np.dtype("<f2"): "F16", np.dtype("<f4"): "F32", np.dtype("u1"): "U8"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}

Record = dict[str, Any]  # of a tensor in the manifest: dtype, shape, parts


def split_name(name: str, part: int) -> str:
    """What a part of a tensor that is split by rows is called in its shard and in the graph."""
    return f"{name}.part{part}"


class ShardWriter:
    """Writes tensors in the order given into `folder`/shards.

    A shard is finished when the next tensor does not fit; a tensor larger than a shard is split by rows
    (axis 0). Memory holds one shard at most, beside the tensor given.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.shards: list[Record] = []
        self._folder, self._limit = folder, limit
        self._waiting: list[tuple[str, np.ndarray, Record]] = []
        self._size = ALIGNMENT * 2
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)

    def add(self, name: str, array: np.ndarray) -> Record:
        """Add u32, f16 or f32 data or trits (u8); returns its record, whose `parts` are filled by `finish_shard`."""
        array = np.asarray(array, order="C")
        record: Record = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "parts": []}
        room = self._limit - ALIGNMENT * 2 - _ENTRY_BYTES - len(split_name(name, 10**6))
        if array.nbytes <= room:
            self._append(name, array, record)
            return record
        row = array[:1].nbytes
        if row > room:
            raise BadCheckpoint(f"{name}: expected rows of at most {room} bytes to fit a shard, found {row}")
        for part, start in enumerate(range(0, len(array), room // row)):
            self._append(split_name(name, part), array[start : start + room // row], record)
        return record

    def finish_shard(self) -> None:
        """Write what waits. Called between components, so that no shard holds tensors of two."""
        if not self._waiting:
            return
        # Whole multiples of the alignment first: then as many tensors as possible start aligned.
        ordered = sorted(self._waiting, key=lambda item: item[1].nbytes % ALIGNMENT != 0)
        header: dict[str, Record] = {}
        end = 0
        for name, array, record in ordered:
            header[name] = {
                "dtype": record["dtype"],
                "shape": list(array.shape),
                "data_offsets": [end, end + array.nbytes],
            }
            end += array.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        start = 8 + len(text)
        content = b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for _, array, _ in ordered)])
        digest = hashlib.sha256(content).hexdigest()
        file = f"{FOLDER}/{digest}.safetensors"
        (self._folder / file).write_bytes(content)
        index = len(self.shards)
        self.shards.append({"file": file, "bytes": len(content), "sha256": digest})
        # In the order of adding, so that the parts of a split tensor stay in order.
        for name, array, record in self._waiting:
            offset = start + header[name]["data_offsets"][0]
            record["parts"].append({"shard": index, "offset": offset, "bytes": array.nbytes})
        self._waiting = []
        self._size = ALIGNMENT * 2

    def _append(self, name: str, array: np.ndarray, record: Record) -> None:
        size = array.nbytes + _ENTRY_BYTES + len(json.dumps(name))
        if self._size + size > self._limit:
            self.finish_shard()
        self._waiting.append((name, array, record))
        self._size += size


class ShardReader:
    """Reads tensors by their manifest records; each shard's size and hash is checked at first use."""

    def __init__(self, folder: Path, shards: list[Record]) -> None:
        self._folder, self._shards = folder, shards
        self._checked: set[int] = set()

    def read(self, name: str, record: Record) -> np.ndarray:
        """The whole tensor in its stored dtype, its parts joined; bytes of trits are checked."""
        dtype = DTYPES[record["dtype"]]
        pieces = []
        for part in record["parts"]:
            self.check(part["shard"])
            with (self._folder / self._shards[part["shard"]]["file"]).open("rb") as file:
                file.seek(part["offset"])
                pieces.append(file.read(part["bytes"]))
        data = b"".join(pieces) if len(pieces) > 1 else pieces[0]
        expected = int(np.prod(record["shape"], dtype=np.int64)) * dtype.itemsize
        if len(data) != expected:
            raise BadBundle(f"tensor {name}: expected {expected} bytes, found {len(data)} in its shards")
        array = np.frombuffer(data, dtype).reshape(record["shape"])
        if record["dtype"] == "U8":
            check_trits(array, name)
        return array

    def check(self, index: int) -> None:
        """Compare size and SHA-256 of a shard with the manifest, and its header with its size."""
        if index in self._checked:
            return
        shard = self._shards[index]
        path = self._folder / shard["file"]
        if not path.is_file():
            raise BadBundle(f"{shard['file']}: expected a shard of {shard['bytes']} bytes, found no such file")
        if path.stat().st_size != shard["bytes"]:
            raise BadBundle(f"{shard['file']}: expected {shard['bytes']} bytes, found {path.stat().st_size}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard["sha256"]:
            raise BadBundle(
                f"{shard['file']}: expected SHA-256 {shard['sha256']}, found {digest}: the shard is damaged"
            )
        TensorFile(path, shard["file"], BadBundle)
        self._checked.add(index)

    def check_all(self) -> None:
        """Check every shard of the manifest."""
        for index in range(len(self._shards)):
            self.check(index)
