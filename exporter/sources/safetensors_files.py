"""A component in safetensors files: one file, or several with an index, as diffusers and transformers save it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporter.errors import BadCheckpoint
from exporter.jsonfile import read_json
from exporter.sources.source import Given
from exporter.tensorfile import Entry, TensorFile


class SafetensorsFiles:
    """The tensors of FOLDER/FILE, or of the files that FOLDER/FILE.index.json lists; a `Source`.

    Opening reads the headers only. Raises BadCheckpoint for files that are missing or damaged and for
    an index that they do not fit.
    """

    def __init__(self, folder: Path, file: str) -> None:
        if (folder / f"{file}.index.json").is_file():
            self._files = _open_sharded(folder, f"{file}.index.json")
        else:
            opened = TensorFile(folder / file, f"{folder.name}/{file}")
            self._files = dict.fromkeys(opened.entries, opened)

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.entry(name).shape

    def label(self, name: str) -> str:
        """Folder and name of the file that holds a tensor."""
        return self._files[name].label

    def tensor(self, name: str) -> np.ndarray:
        """A floating-point tensor as f32."""
        return self._files[name].read_f32(name)

    def given(self, name: str) -> Given | None:
        """None: nothing here is packed."""
        return None

    def entry(self, name: str) -> Entry:
        """What the header says of a tensor."""
        return self._files[name].entries[name]

    def read(self, name: str) -> np.ndarray:
        """A tensor as stored (BF16 as u16 bits)."""
        return self._files[name].read(name)


def _open_sharded(folder: Path, index: str) -> dict[str, TensorFile]:
    """Tensor name -> opened file, as the index has it."""
    label = f"{folder.name}/{index}"
    weight_map = read_json(folder / index, label).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{label}: expected a weight_map of tensor names, found {type(weight_map).__name__}")
    files: dict[str, TensorFile] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise BadCheckpoint(f"{label}: tensor {name}: expected a file name in the same folder, found {file_name!r}")
        if file_name not in files:
            files[file_name] = TensorFile(folder / file_name, f"{folder.name}/{file_name}")
        if name not in files[file_name].entries:
            raise BadCheckpoint(f"{files[file_name].label}: expected tensor {name} as {label} says, found it missing")
    return {name: files[file_name] for name, file_name in weight_map.items()}
