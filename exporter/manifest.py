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
from exporter.trits import UNIT_BYTES, trits_shape

FORMAT = 2
FILE = "manifest.json"
COMPONENTS = ("encoder", "modulation", "denoiser", "decoder")
OPTIONAL = ("modulation",)  # a page fetches their shards only when it needs them
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
    "modulation": dict,
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
    "modulation": {"sigmas": list, "table": str, "width": int},
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


def is_older(folder: Path) -> bool:
    """Whether a folder holds a bundle of an earlier format: not readable any more, but made to be replaced."""
    try:
        manifest = json.loads((folder / FILE).read_text(encoding="utf-8"))
        version = manifest["format"]
        return type(version) is int and 0 < version < FORMAT and {"components", "shards"} <= manifest.keys()
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return False


def check(manifest: Any, where: str) -> None:
    """Raise BadBundle unless `manifest` has all keys, and tensors lie inside their shards."""
    if not isinstance(manifest, dict):
        raise BadBundle(f"{where}: expected a JSON object, found {type(manifest).__name__}")
    version = manifest.get("format")
    if type(version) is not int or version < 1:
        raise BadBundle(f"{where}: expected format {FORMAT}, found {version!r}")
    if version < FORMAT:
        raise BadBundle(
            f"{where}: expected a bundle of format {FORMAT}, found format {version}:"
            " written by an older Bitbrush; export it again"
        )
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
    _check_table(manifest["modulation"], manifest["components"]["denoiser"]["tensors"], where)


def first_download(manifest: Manifest) -> int:
    """Bytes of the shards that a first visit fetches: those of all components but the optional ones."""
    needed = {
        part["shard"]
        for name, component in manifest["components"].items()
        if name not in OPTIONAL
        for record in component["tensors"].values()
        for part in record["parts"]
    }
    return sum(manifest["shards"][index]["bytes"] for index in needed)


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
    expanded = [record["expands_to"]["name"] for record in component["tensors"].values() if "expands_to" in record]
    twice = [name for name in expanded if name in component["tensors"] or expanded.count(name) > 1]
    if twice:
        raise BadBundle(f"{where}: expected one tensor called {twice[0]} in {prefix}tensors, found several")


def _check_table(modulation: dict, tensors: dict, where: str) -> None:
    sigmas = modulation["sigmas"]
    if not all(type(sigma) in (int, float) for sigma in sigmas):
        raise BadBundle(f"{where}: expected modulation.sigmas as numbers, found {sigmas!r:.60}")
    found = tensors.get(modulation["table"], {})
    shape = [len(sigmas), modulation["width"]]
    if (found.get("dtype"), found.get("shape")) != ("F32", shape):
        raise BadBundle(
            f"{where}: expected {modulation['table']} as F32 {shape} in the denoiser,"
            f" found {found.get('dtype', 'nothing')} {found.get('shape', '')}".rstrip()
        )


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
    _check_expansion(record, where, prefix)


def _check_expansion(record: dict[str, Any], where: str, prefix: str) -> None:
    """Trits, and they alone, are U8 and say which codes the GPU gets."""
    if (record["dtype"] == "U8") != ("expands_to" in record):
        found = f"{'one' if 'expands_to' in record else 'none'} with {record['dtype']}"
        raise BadBundle(f"{where}: expected {prefix}expands_to with dtype U8 and no other, found {found}")
    if "expands_to" not in record:
        return
    _check_keys(record["expands_to"], {"name": str, "shape": list}, where, f"{prefix}expands_to.")
    shape = record["expands_to"]["shape"]
    if len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise BadBundle(f"{where}: expected {prefix}expands_to.shape as two sizes, found {shape!r:.60}")
    if record["shape"] != list(trits_shape(shape)):
        raise BadBundle(
            f"{where}: expected {prefix}shape {list(trits_shape(shape))} for codes {shape}, found {record['shape']}"
        )
    if any(part["bytes"] % UNIT_BYTES for part in record["parts"]):
        raise BadBundle(f"{where}: expected {prefix}parts of whole units of {UNIT_BYTES} bytes, found others")
