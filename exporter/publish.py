"""One bundle's part of a site: manifest, plans, tokenizer and shards, and the kernels that plans use."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from exporter.bundle import Bundle
from exporter.errors import BadBundle
from exporter.gpu_memory import converted_bytes, phase_bytes
from exporter.lower import lower_bundle
from exporter.manifest import Manifest, first_download
from webgpu_kernels import render_all
from webgpu_kernels.operands import CONVERSIONS

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# What the runtime dispatches to bring trits to the GPU; no plan has it.
EXPAND_TRITS = {"kernel": "expand_trits", "options": {}}
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def open_bundle(folder: Path) -> Bundle:
    """A bundle whose names can be used as file names.

    Raises:
        BadBundle: see exporter.bundle.Bundle, or a name with other signs than letters, digits, `.`, `-`, `_`.
    """
    bundle = Bundle(folder)
    for key in ("name", "variant"):
        if not FILE_NAME.fullmatch(bundle.manifest[key]):
            raise BadBundle(
                f"{folder}, manifest.json, {key}: expected letters, digits, dots, dashes, "
                f"found {bundle.manifest[key]!r}"
            )
    return bundle


def site_id(manifest: Manifest) -> str:
    """What a model is called in a site: its folder under models/ and its `id` in models/index.json."""
    return f"{manifest['name']}-{manifest['variant']}"


def dump_json(path: Path, value: Any) -> None:
    """Write JSON that is the same for the same value."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise BadBundle(f"{source}: expected a readable file, found: {error.strerror or error}") from error


def _place_shard(source: Path, target: Path) -> None:
    """Put a shard into the site: a hard link where the disk allows it, else a copy."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _served_manifest(manifest: Manifest, weights_url: str | None) -> Manifest:
    """The manifest with the folder of `shards/`: in the site itself, or elsewhere."""
    return {**manifest, "shards_url": "../../" if weights_url is None else weights_url.rstrip("/") + "/"}


def _write_tokenizer(source: Path, target: Path) -> None:
    target.mkdir()
    for name in TOKENIZER_FILES:
        _copy(source / name, target / name)


def write_model(bundle: Bundle, out: Path, weights_url: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write one model's files into the site `out`.

    Args:
        bundle: with shards that were verified.
        out: has the folders `models` and, unless the weights are elsewhere, `shards`.
        weights_url: address of the folder that holds `shards/`; None puts them into the site.

    Returns:
        the model's entry for models/index.json, and lists of dispatches: its plans and what upload needs.

    Raises:
        BadBundle: a model of the same name is there, a file is missing, or a graph cannot be lowered.
    """
    manifest = bundle.manifest
    identity = site_id(manifest)
    folder = out / "models" / identity
    if folder.exists():
        raise BadBundle(f"{bundle.path}: expected one bundle named {identity}, found a second one")
    folder.mkdir()
    plans = lower_bundle(bundle.path)
    for component, plan in plans.items():
        dump_json(folder / manifest["components"][component]["plan"], plan)
    memory = {"memory": phase_bytes(manifest, plans), "converted": converted_bytes(manifest, plans["denoiser"])}
    dump_json(folder / "manifest.json", {**_served_manifest(manifest, weights_url), **memory})
    tokenizer = manifest["text"]["tokenizer"]
    _write_tokenizer(bundle.path / tokenizer, folder / tokenizer)
    for license_file in sorted(bundle.path.glob("LICENSE*")):
        _copy(license_file, folder / license_file.name)
    if weights_url is None:
        for shard in manifest["shards"]:
            _place_shard(bundle.path / shard["file"], out / shard["file"])
    first, all_shards = first_download(manifest), sum(shard["bytes"] for shard in manifest["shards"])
    small_files = sum(path.stat().st_size for path in folder.rglob("*.json"))
    entry = {
        "id": identity,
        "name": manifest["name"],
        "variant": manifest["variant"],
        "weights": manifest["weights"],
        "manifest": f"{identity}/manifest.json",
        "bytes": first + small_files,
        "other_bytes": all_shards - first,
        "steps": manifest["schedule"]["steps"],
        "channels": manifest["latents"]["channels"],
        "sizes": manifest["sizes"],
        **memory,
        "source": manifest["source"],
        "license": manifest["license"],
    }
    records = [record for component in manifest["components"].values() for record in component["tensors"].values()]
    uploads = [EXPAND_TRITS] if any("expands_to" in record for record in records) else []
    return entry, [*plans.values(), {"dispatches": uploads}]


def write_kernels(folder: Path, plans: Iterable[dict[str, Any]]) -> None:
    """Render every kernel that the plans dispatch, in all its variants, those that convert what variants take, and the
    one that compares variants."""
    wanted = {
        (dispatch["kernel"], json.dumps(dispatch["options"], sort_keys=True))
        for plan in plans
        for dispatch in plan["dispatches"]
    }
    index: list[dict[str, Any]] = []
    converted = {
        kind
        for name, options in wanted
        for rendered in render_all(name, json.loads(options))
        for kind in rendered.variant.converts.values()
    }
    wanted |= {(name, json.dumps(options)) for name, options in (CONVERSIONS[kind] for kind in converted)}
    wanted.add(("compare", "{}"))
    for name, options in sorted(wanted):
        for rendered in render_all(name, json.loads(options)):
            (folder / rendered.file).write_text(rendered.wgsl, encoding="utf-8", newline="\n")
            if rendered.to_json() not in index:
                index.append(rendered.to_json())
    dump_json(folder / "index.json", index)
