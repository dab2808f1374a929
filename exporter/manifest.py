"""`manifest.json`: what a bundle holds, by name. DESIGN.md §3 shows its shape.

A manifest is a plain JSON object in Python too; `load` is the only way in and checks all that readers
rely on, so that they need no checks of their own.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from exporter.errors import BadBundle
from exporter.shards import DTYPES

FORMAT = 1
FILE = "manifest.json"
COMPONENTS = ("encoder", "denoiser", "decoder")
WEIGHTS = ("binary", "ternary", "keep")

Manifest = dict[str, Any]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD_FILE = re.compile(r"shards/([0-9a-f]{64})\.safetensors")
_TOP = {
    "name": str,
    "variant": str,
    "weights": str,
    "source": str,
    "license": str,
    "components": dict,
    "shards": list,
    "text": dict,
    "latents": dict,
    "denoiser": dict,
    "schedule": dict,
    "sizes": dict,
}
_NESTED = {
    "text": {
        "tokenizer": str,
        "prefix": str,
        "suffix": str,
        "length": int,
        "pad_id": int,
        "layers": list,
        "features": int,
        "rotary": dict,
    },
    "latents": {"channels": int, "downscale": int},
    "denoiser": {"rotary": dict, "timestep_features": int},
    "schedule": {"steps": int},
    "sizes": {"multiple": int, "minimum": int, "maximum": int, "default": list, "presets": list},
}


def dump(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json`; the same manifest always gives the same bytes."""
    (folder / FILE).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: Path) -> Manifest:
    """Read and check a bundle's manifest. Raises BadBundle."""
    path = folder / FILE
    if not folder.is_dir():
        raise BadBundle(f"{folder}: expected a bundle folder, found {'a file' if folder.exists() else 'nothing'}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadBundle(f"{folder}: expected {FILE} of a bundle, found no such file") from None
    except OSError as problem:
        raise BadBundle(f"{path}: expected a readable file, found: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise BadBundle(f"{path}: expected JSON, found: {problem}") from None
    check(manifest, str(path))
    return manifest


def check(manifest: Any, where: str) -> None:
    """Raise BadBundle unless `manifest` has all keys, and tensors lie inside their shards."""
    if not isinstance(manifest, dict):
        raise BadBundle(f"{where}: expected a JSON object, found {type(manifest).__name__}")
    version = manifest.get("format")
    if type(version) is not int or version < 1:
        raise BadBundle(f"{where}: expected format {FORMAT}, found {version!r}")
    if version > FORMAT:
        raise BadBundle(
            f"{where}: expected a bundle of format {FORMAT}, found format {version}:"
            " written by a newer Bitbrush; update this one"
        )
    _check_keys(manifest, _TOP, where, "")
    commit = manifest.get("commit", "0" * 40)  # only of a source on the Hub
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise BadBundle(f"{where}: expected commit as 40 hexadecimal digits, found {commit!r:.60}")
    if not isinstance(manifest.get("decoder_source", ""), str):  # only of a decoder from another folder
        raise BadBundle(f"{where}: expected decoder_source as str, found {manifest['decoder_source']!r:.60}")
    for key, keys in _NESTED.items():
        _check_keys(manifest[key], keys, where, f"{key}.")
    tokenizer = manifest["text"]["tokenizer"]
    if Path(tokenizer).name != tokenizer:
        raise BadBundle(f"{where}: expected a folder name in the bundle for text.tokenizer, found {tokenizer!r}")
    if manifest["weights"] not in WEIGHTS:
        raise BadBundle(f"{where}: expected weights among {', '.join(WEIGHTS)}, found {manifest['weights']!r}")
    _check_shards(manifest["shards"], where)
    missing = [name for name in COMPONENTS if name not in manifest["components"]]
    if missing:
        raise BadBundle(f"{where}: expected components {', '.join(COMPONENTS)}, found no {missing[0]}")
    for name, component in manifest["components"].items():
        _check_component(component, manifest["shards"], where, f"components.{name}.")


def _check_keys(value: Any, keys: dict[str, type], where: str, prefix: str) -> None:
    if not isinstance(value, dict):
        raise BadBundle(f"{where}: expected an object for {prefix.rstrip('.')}, found {value!r:.60}")
    for key, kind in keys.items():
        if key not in value:
            raise BadBundle(f"{where}: expected key {prefix}{key}, found it missing")
        if type(value[key]) is not kind:
            raise BadBundle(f"{where}: expected {prefix}{key} as {kind.__name__}, found {value[key]!r:.60}")


def _check_shards(shards: list, where: str) -> None:
    for index, shard in enumerate(shards):
        _check_keys(shard, {"file": str, "bytes": int, "sha256": str}, where, f"shards[{index}].")
        match = _SHARD_FILE.fullmatch(shard["file"])
        if not match or match[1] != shard["sha256"]:
            raise BadBundle(f"{where}: expected shards/SHA-256.safetensors, found {shard['file']!r}")


def _check_component(component: Any, shards: list, where: str, prefix: str) -> None:
    _check_keys(component, {"graph": str, "plan": str, "tensors": dict}, where, prefix)
    for key in ("graph", "plan"):
        if Path(component[key]).name != component[key]:
            raise BadBundle(f"{where}: expected a file name in the bundle for {prefix}{key}, found {component[key]!r}")
    for name, record in component["tensors"].items():
        _check_tensor(record, shards, where, f"{prefix}tensors.{name}.")


def _check_tensor(record: Any, shards: list, where: str, prefix: str) -> None:
    _check_keys(record, {"dtype": str, "shape": list, "parts": list}, where, prefix)
    dtype, shape, parts = record["dtype"], record["shape"], record["parts"]
    if dtype not in DTYPES:
        raise BadBundle(f"{where}: expected {prefix}dtype among {', '.join(DTYPES)}, found {dtype!r}")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise BadBundle(f"{where}: expected {prefix}shape as sizes, found {shape!r:.60}")
    if not parts:
        raise BadBundle(f"{where}: expected at least one part for {prefix.rstrip('.')}, found none")
    total = 0
    for index, part in enumerate(parts):
        _check_keys(part, {"shard": int, "offset": int, "bytes": int}, where, f"{prefix}parts[{index}].")
        if not 0 <= part["shard"] < len(shards):
            raise BadBundle(
                f"{where}: expected {prefix}parts[{index}] in one of {len(shards)} shards, found shard {part['shard']}"
            )
        size = shards[part["shard"]]["bytes"]
        if part["offset"] < 8 or part["bytes"] < 0 or part["offset"] + part["bytes"] > size:
            raise BadBundle(
                f"{where}: expected {prefix}parts[{index}] inside its shard of {size} bytes, found bytes"
                f" {part['offset']}..{part['offset'] + part['bytes']}"
            )
        total += part["bytes"]
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if total != expected:
        raise BadBundle(f"{where}: expected {prefix}parts of {expected} bytes for {dtype} {shape}, found {total}")
