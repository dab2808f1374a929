"""A checkpoint on disk: a diffusers folder of a `Flux2KleinPipeline` or a pack made of one, read lazily.

A pack holds the same components under names such as `transformer-packed-mflux`, with low-bit weights in a
format of its own; what a component's files are is found by looking at them (exporter/sources).

Opening parses and checks the configs and the headers of the weight files. Tensors are read one at a
time with `Checkpoint.tensor`, so memory holds the largest tensor, never the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from exporter.configs import check_configs
from exporter.errors import BadCheckpoint
from exporter.jsonfile import read_json
from exporter.sources import WEIGHT_FILES, open_component
from exporter.sources.source import Given, Source

PIPELINE = "Flux2KleinPipeline"
# Where a diffusers folder and a bundle's configs/ have the configs.
CONFIG_FILES = {
    "transformer": "transformer/config.json",
    "text_encoder": "text_encoder/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
# What a diffusers folder's model_index.json says; those of packs leave it out.
INDEX = {
    "_class_name": PIPELINE,
    "is_distilled": True,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
    "tokenizer": ["transformers", "Qwen2TokenizerFast"],
    "transformer": ["diffusers", "Flux2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
}
# FLUX.2-klein's scheduler_config.json, for packs that come without.
KLEIN_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.37.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
# How a pack's own format is recorded; readers look it up, libraries that open the bundle must not.
PACK_KEYS = ("quantization", "quantization_config")
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


def pick_folder(where: str, component: str, folders: Iterable[str]) -> str:
    """The component's folder among names: of its very name, else the one whose name starts with it.

    Raises BadCheckpoint, starting with `where`, if there is none or several start so.
    """
    found = sorted({folder for folder in folders if folder.startswith(component)})
    if component in found:
        return component
    if len(found) != 1:
        names = " and ".join(found) or "none"
        raise BadCheckpoint(f"{where}: expected a folder {component}, or one whose name starts so, found {names}")
    return found[0]


def is_tokenizer(names: set[str]) -> bool:
    """Whether files of these names make a whole tokenizer."""
    return "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names


class Checkpoint:
    """A local diffusers folder or pack.

    index             model_index.json, with what packs leave out of it
    folders           {transformer, text_encoder, vae} -> folder of the component
    configs           {transformer, text_encoder, vae, scheduler} -> parsed JSON, checked, without the
                      keys that record how a pack is packed
    tokenizer_folder  where the tokenizer lies
    tokenizer_files   paths of the tokenizer's files, sorted by name
    license_files     licence and notice texts of the folder, which travel with the weights
    decoder_license_files  those of a VAE that took the place of the checkpoint's own

    Weights live in the components transformer, text_encoder and vae. Names of the text encoder start
    with `model.` (as `Qwen3ForCausalLM` saves them) even where the files leave that out.

    Raises BadCheckpoint for everything that is missing, damaged or unknown.
    """

    decoder_license_files: tuple[Path, ...] = ()

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            found = "a file" if self.path.exists() else "nothing"
            raise BadCheckpoint(f"{self.path}: expected a folder with a diffusers pipeline, found {found}")
        index = read_json(self.path / "model_index.json", "model_index.json", hint=f" of a {PIPELINE}")
        if index.get("_class_name") != PIPELINE:
            raise BadCheckpoint(
                f"model_index.json: expected _class_name {PIPELINE}, found {index.get('_class_name')!r}"
            )
        # `is_distilled` is left out by folders of the base model too: only an index without components is a pack's.
        self.index = index if set(WEIGHT_FILES) & set(index) else {**INDEX, **index}
        self.folders = {component: self._find_folder(component) for component in WEIGHT_FILES}
        self.configs: dict[str, dict[str, Any]] = self._read_configs()
        check_configs(self.configs)
        self.tokenizer_folder, self.tokenizer_files = self._find_tokenizer()
        self.license_files = sorted(file for pattern in LICENSE_PATTERNS for file in self.path.glob(pattern))
        self._sources: dict[str, Source] = {
            component: open_component(folder, component) for component, folder in self.folders.items()
        }
        self._stored_names = {component: self._canonical_names(component) for component in WEIGHT_FILES}

    def names(self, component: str) -> list[str]:
        """Names of all tensors of a component, sorted."""
        return sorted(self._stored_names[component])

    def shape(self, component: str, name: str) -> tuple[int, ...]:
        """Shape of a tensor; raises BadCheckpoint if the component has none of that name."""
        return tuple(self._sources[component].shape(self._stored_name(component, name)))

    def label(self, component: str, name: str) -> str:
        """The file that holds a tensor, as messages call it."""
        return self._sources[component].label(self._stored_name(component, name))

    def require(self, component: str, name: str, shape: tuple[int, ...]) -> None:
        """Check that a tensor is there and has the shape that the configs ask for."""
        found = self.shape(component, name)
        if found != tuple(shape):
            raise BadCheckpoint(
                f"{self.label(component, name)}: tensor {name}: expected shape {list(shape)} from"
                f" {self.folders[component].name}/config.json, found {list(found)}"
            )

    def tensor(self, component: str, name: str) -> np.ndarray:
        """Read one tensor as f32 in the checkpoint's layout; packed matrices come out de-quantized."""
        return self._sources[component].tensor(self._stored_name(component, name))

    def given(self, component: str, name: str) -> Given | None:
        """A matrix as the checkpoint holds it packed, None if it is not packed or not exact in float16."""
        return self._sources[component].given(self._stored_name(component, name))

    def replace_vae(self, folder: Path, config: dict[str, Any], source: Source) -> None:
        """Take another VAE, which exporter/small_decoder.py has found to fit; its licence texts come along."""
        self.folders["vae"], self.configs["vae"], self._sources["vae"] = folder, config, source
        self._stored_names["vae"] = self._canonical_names("vae")
        self.decoder_license_files = tuple(
            sorted(file for pattern in LICENSE_PATTERNS for file in folder.glob(pattern))
        )

    def _stored_name(self, component: str, name: str) -> str:
        known = self._stored_names[component]
        if name not in known:
            labels = {self._sources[component].label(stored) for stored in known.values()}
            where = labels.pop() if len(labels) == 1 else component
            raise BadCheckpoint(f"{where}: expected tensor {name}, found {len(known)} others")
        return known[name]

    def _canonical_names(self, component: str) -> dict[str, str]:
        """Name that this class goes by -> name in the source."""
        names = self._sources[component].names()
        if component != "text_encoder" or any(name.startswith("model.") for name in names):
            return {name: name for name in names}
        return {name if name.startswith("lm_head.") else f"model.{name}": name for name in names}

    def _find_folder(self, component: str) -> Path:
        return self.path / pick_folder(
            str(self.path), component, (folder.name for folder in self.path.iterdir() if folder.is_dir())
        )

    def _read_configs(self) -> dict[str, dict[str, Any]]:
        configs = {}
        for component, folder in self.folders.items():
            config = read_json(folder / "config.json", f"{folder.name}/config.json")
            configs[component] = {key: value for key, value in config.items() if key not in PACK_KEYS}
        scheduler = CONFIG_FILES["scheduler"]
        if (self.path / scheduler).parent.is_dir():
            configs["scheduler"] = read_json(self.path / scheduler, scheduler)
        else:
            configs["scheduler"] = dict(KLEIN_SCHEDULER)
        return configs

    def _find_tokenizer(self) -> tuple[Path, list[Path]]:
        """Folder and files of the tokenizer; packs may have it with the text encoder."""
        beside = self.folders["text_encoder"]
        for folder in (self.path / "tokenizer", beside / "tokenizer", beside):
            files = [folder / name for name in sorted(TOKENIZER_FILES) if (folder / name).is_file()]
            if is_tokenizer({file.name for file in files}):
                return folder, files
        raise BadCheckpoint("tokenizer: expected tokenizer.json, or vocab.json and merges.txt; found neither")
