"""A checkpoint on disk: a diffusers folder of a `Flux2KleinPipeline`, read lazily.

Opening parses and checks the configs and the headers of the weight files. Tensors are read one at a
time with `Checkpoint.tensor`, so memory holds the largest tensor, never the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from exporter.configs import check_configs
from exporter.errors import BadCheckpoint
from exporter.tensorfile import Entry, TensorFile

PIPELINE = "Flux2KleinPipeline"
CONFIG_FILES = {
    "transformer": "transformer/config.json",
    "text_encoder": "text_encoder/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
WEIGHT_FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
# What tokenizers are made of; anything else in the folder stays behind.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
LICENSE_PATTERNS = ("LICENSE*", "NOTICE*")


class Checkpoint:
    """A local diffusers folder.

    configs          {transformer, text_encoder, vae, scheduler} -> parsed JSON, checked
    tokenizer_files  paths of the tokenizer's files, sorted by name
    license_files    licence and notice texts of the folder, which travel with the weights

    Weights live in the components transformer, text_encoder and vae. Names of the text encoder start
    with `model.` (as `Qwen3ForCausalLM` saves them) even where the files leave that out.

    Raises BadCheckpoint for everything that is missing, damaged or unknown.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            found = "a file" if self.path.exists() else "nothing"
            raise BadCheckpoint(f"{self.path}: expected a folder with a diffusers pipeline, found {found}")
        self.index = read_json(self.path / "model_index.json", "model_index.json", hint=f" of a {PIPELINE}")
        if self.index.get("_class_name") != PIPELINE:
            raise BadCheckpoint(
                f"model_index.json: expected _class_name {PIPELINE}, found {self.index.get('_class_name')!r}"
            )
        self.configs: dict[str, dict[str, Any]] = {
            component: read_json(self.path / file, file) for component, file in CONFIG_FILES.items()
        }
        check_configs(self.configs)
        folder = self.path / "tokenizer"
        self.tokenizer_files = [folder / name for name in sorted(TOKENIZER_FILES) if (folder / name).is_file()]
        names = {file.name for file in self.tokenizer_files}
        if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
            raise BadCheckpoint("tokenizer: expected tokenizer.json, or vocab.json and merges.txt; found neither")
        self.license_files = sorted(file for pattern in LICENSE_PATTERNS for file in self.path.glob(pattern))
        self._files = {component: self._open(component) for component in WEIGHT_FILES}

    def names(self, component: str) -> list[str]:
        """Names of all tensors of a component, sorted."""
        return sorted(self._files[component])

    def shape(self, component: str, name: str) -> tuple[int, ...]:
        """Shape of a tensor; raises BadCheckpoint if the component has none of that name."""
        return self._entry(component, name).shape

    def require(self, component: str, name: str, shape: tuple[int, ...]) -> None:
        """Check that a tensor is there and has the shape that the configs ask for."""
        found = self.shape(component, name)
        if found != tuple(shape):
            file, _ = self._files[component][name]
            raise BadCheckpoint(
                f"{file.label}: tensor {name}: expected shape {list(shape)} from {component}/config.json,"
                f" found {list(found)}"
            )

    def tensor(self, component: str, name: str) -> np.ndarray:
        """Read one tensor as f32 (from BF16, F16, F32 or F64) in the checkpoint's layout."""
        self._entry(component, name)
        file, stored_name = self._files[component][name]
        return file.read_f32(stored_name)

    def _entry(self, component: str, name: str) -> Entry:
        if name not in self._files[component]:
            known = self._files[component]
            labels = sorted({file.label for file, _ in known.values()})
            where = labels[0] if len(labels) == 1 else component
            raise BadCheckpoint(f"{where}: expected tensor {name}, found {len(known)} others")
        file, stored_name = self._files[component][name]
        return file.entries[stored_name]

    def _open(self, component: str) -> dict[str, tuple[TensorFile, str]]:
        """Canonical tensor name -> (file, name in the file)."""
        single = f"{component}/{WEIGHT_FILES[component]}"
        index = f"{single}.index.json"
        if (self.path / index).is_file():
            found = self._open_sharded(component, index)
        elif (self.path / single).is_file():
            file = TensorFile(self.path / single, single)
            found = {name: (file, name) for name in file.entries}
        else:
            raise BadCheckpoint(f"{component}: expected {WEIGHT_FILES[component]} or its .index.json, found neither")
        if component != "text_encoder" or any(name.startswith("model.") for name in found):
            return found
        return {name if name.startswith("lm_head.") else f"model.{name}": where for name, where in found.items()}

    def _open_sharded(self, component: str, index: str) -> dict[str, tuple[TensorFile, str]]:
        weight_map = read_json(self.path / index, index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BadCheckpoint(f"{index}: expected a weight_map of tensor names, found {type(weight_map).__name__}")
        files: dict[str, TensorFile] = {}
        found = {}
        for name, file_name in weight_map.items():
            if not isinstance(file_name, str) or Path(file_name).name != file_name:
                raise BadCheckpoint(
                    f"{index}: tensor {name}: expected a file name in the same folder, found {file_name!r}"
                )
            if file_name not in files:
                label = f"{component}/{file_name}"
                files[file_name] = TensorFile(self.path / label, label)
            if name not in files[file_name].entries:
                raise BadCheckpoint(
                    f"{component}/{file_name}: expected tensor {name} as {index} says, found it missing"
                )
            found[name] = (files[file_name], name)
        return found


def read_json(path: Path, label: str, hint: str = "") -> dict[str, Any]:
    """Parse a JSON object; raises BadCheckpoint that calls the file `label`."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(f"{path.parent}: expected {label}{hint}, found no such file") from None
    except OSError as problem:
        raise BadCheckpoint(f"{label}: expected a readable file, found: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise BadCheckpoint(f"{label}: expected JSON, found: {problem}") from None
    if not isinstance(parsed, dict):
        raise BadCheckpoint(f"{label}: expected a JSON object, found {type(parsed).__name__}")
    return parsed
