"""Which files of a repository the exporter reads; the choice is that of exporter/checkpoint.py and sources/."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from exporter.checkpoint import LICENSE_PATTERNS, TOKENIZER_FILES, is_tokenizer, pick_folder
from exporter.errors import BadCheckpoint
from exporter.sources import GEMLITE_FILE, HQQ_FILE, WEIGHT_FILES

INDEX = "model_index.json"
TOP_FILES = (INDEX, "README.md", "scheduler/scheduler_config.json")
CONFIG_FILES = ("config.json", "quantization_config.json")


def choose(label: str, listed: Iterable[str], read_index: Callable[[str], dict[str, Any]]) -> list[str]:
    """The files that the exporter reads, sorted.

    Args:
        label: what messages call the repository.
        listed: paths of all files of the repository.
        read_index: gives the JSON of a `….safetensors.index.json`; called where there is one.

    Single-file copies at the top, other precisions, images and other folders are not chosen. Raises
    BadCheckpoint for a repository that holds no pipeline: without model_index.json, without a component,
    or with several folders for one.
    """
    files = set(listed)
    if INDEX not in files:
        raise BadCheckpoint(f"{label}: expected {INDEX} of a diffusers pipeline, found {len(files)} other files")
    chosen = {file for file in TOP_FILES if file in files}
    chosen |= {file for file in files if any(_matches(file, pattern) for pattern in LICENSE_PATTERNS)}
    tops = {file.split("/")[0] for file in files if "/" in file}
    folders = {component: pick_folder(label, component, tops) for component in WEIGHT_FILES}
    for component, folder in folders.items():
        chosen |= {f"{folder}/{name}" for name in CONFIG_FILES} & files
        chosen |= _weights(label, folder, WEIGHT_FILES[component], files, read_index)
    return sorted(chosen | _tokenizer(label, folders["text_encoder"], files))


def _matches(file: str, pattern: str) -> bool:
    """`fnmatch` for one folder: `*` stands for no slash."""
    return file.count("/") == pattern.count("/") and fnmatchcase(file, pattern)


def _weights(
    label: str, folder: str, single: str, files: set[str], read_index: Callable[[str], dict[str, Any]]
) -> set[str]:
    """The component's weights, of whatever kind; an index names its files."""
    chosen = {f"{folder}/{name}" for name in (GEMLITE_FILE, HQQ_FILE)} & files
    chosen |= {file for file in files if _matches(file, f"{folder}/*.gguf")}
    index = f"{folder}/{single}.index.json"
    if index in files:
        weight_map = read_index(index).get("weight_map")
        parts = {str(part) for part in weight_map.values()} if isinstance(weight_map, dict) else set()
        missing = sorted(part for part in parts if f"{folder}/{part}" not in files)
        if missing or not parts:
            found = f"no file {missing[0]}" if missing else "none"
            raise BadCheckpoint(f"{label}: {index}: expected a weight_map of files beside it, found {found}")
        chosen |= {index, *(f"{folder}/{part}" for part in parts)}
    elif f"{folder}/{single}" in files:
        chosen.add(f"{folder}/{single}")
    if not chosen:
        raise BadCheckpoint(
            f"{label}: {folder}: expected {single} or its .index.json, {GEMLITE_FILE}, {HQQ_FILE} or a .gguf file,"
            " found none of them"
        )
    return chosen


def _tokenizer(label: str, text_encoder: str, files: set[str]) -> set[str]:
    """The tokenizer's files; packs may have it with the text encoder."""
    for folder in ("tokenizer", f"{text_encoder}/tokenizer", text_encoder):
        names = {name for name in TOKENIZER_FILES if f"{folder}/{name}" in files}
        if is_tokenizer(names):
            return {f"{folder}/{name}" for name in names}
    raise BadCheckpoint(f"{label}: tokenizer: expected tokenizer.json, or vocab.json and merges.txt; found neither")
