"""Bundles -> a static site: pages, kernels, plans and shards in one folder that any web server can serve.

The site is built beside its destination and swapped in at the end, so a failed build leaves nothing
behind and an interrupted one never shows a half site.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from exporter.bundle import Bundle
from exporter.errors import BadArguments
from exporter.output import swapped_folder
from exporter.packages import ROOT
from exporter.pages import write_pages
from exporter.publish import FILE_NAME, dump_json, open_bundle, write_kernels, write_model

STAMP = "build.json"
SOURCES = ("site", "webgpu_kernels", "exporter", "package-lock.json")


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """Where the weights are fetched from, and the Space that the site is for.

    weights_url  absolute https address of the folder that holds `shards/`; None keeps them in the site
    space        "USER/NAME" of a static Hugging Face Space; adds its README.md
    """

    weights_url: str | None = None
    space: str | None = None

    def __post_init__(self) -> None:
        if self.weights_url is not None:
            parts = urlsplit(self.weights_url)
            if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
                raise BadArguments(
                    f"--weights-url: expected an https address without query or user, found {self.weights_url!r}"
                )
        if self.space is not None and not re.fullmatch(rf"{FILE_NAME.pattern}/{FILE_NAME.pattern}", self.space):
            raise BadArguments(f"--space: expected USER/NAME, found {self.space!r}")


def embedded_bundles() -> list[Path]:
    """The bundles that come with this repository, ternary before binary: the page starts with the first."""
    return sorted((path.parent for path in (ROOT / "models").rglob("manifest.json")), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inputs_hash(bundles: Sequence[Path], options: SiteOptions) -> str:
    """A hash of everything that a site is made from, to know whether one must be built anew.

    Shards are named by their content in the manifest, which stands for them.
    """
    files: list[tuple[str, Path]] = []
    for name in SOURCES:
        source = ROOT / name
        paths = [source] if source.is_file() else source.rglob("*")
        files += [(path.relative_to(ROOT).as_posix(), path) for path in paths]
    for index, bundle in enumerate(bundles):
        paths = [path for path in bundle.rglob("*") if path.suffix != ".safetensors"]
        files += [(f"bundle {index}/{path.relative_to(bundle).as_posix()}", path) for path in paths]
    total = hashlib.sha256(repr(options).encode())
    for name, path in sorted(files):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{name}\0{_sha256(path)}\n".encode())
    return total.hexdigest()


def _space_readme(space: str, entries: list[dict[str, Any]], weights_url: str | None) -> str:
    """README.md of a static Hugging Face Space: its settings, then one paragraph."""
    licenses = sorted({entry["license"] for entry in entries if entry["license"]})
    settings: dict[str, Any] = {
        "title": space.split("/")[1],
        "emoji": "🖌️",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        "license": licenses[0].lower() if len(licenses) == 1 else "other",
        "short_description": "Pictures from words, in your browser",
        "header": "mini",
        "tags": ["webgpu", "text-to-image"],
    }
    hub = re.match(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/", weights_url or "")
    if hub:
        settings["models"] = [hub.group(1)]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]
    names = ", ".join(f"{entry['name']} ({entry['variant']})" for entry in entries)
    return "\n".join(("---", *lines, "---", "", f"Made by Bitbrush. Models: {names}.", ""))


def _write_site(out: Path, bundles: Sequence[Bundle], options: SiteOptions) -> list[dict[str, Any]]:
    """Write a whole site into the empty folder `out`; returns the entries of models/index.json."""
    write_pages(out, weights_url=options.weights_url)
    for name in ("models", "kernels") + (("shards",) if options.weights_url is None else ()):
        (out / name).mkdir()
    entries, plans = [], []
    for bundle in bundles:
        entry, bundle_plans = write_model(bundle, out, options.weights_url)
        entries.append(entry)
        plans += bundle_plans
    write_kernels(out / "kernels", plans)
    dump_json(out / "models" / "index.json", entries)
    if options.space:
        readme = _space_readme(options.space, entries, options.weights_url)
        (out / "README.md").write_text(readme, encoding="utf-8", newline="\n")
    return entries


def _make_stamp(folders: Sequence[Path], options: SiteOptions) -> dict[str, Any]:
    embedded = {folder.resolve() for folder in folders} == set(embedded_bundles()) and options == SiteOptions()
    return {"embedded": embedded, "inputs": inputs_hash(folders, options)}


def read_stamp(out: Path) -> dict[str, Any] | None:
    """What the site in `out` was made from; None if there is no site.

    Returns:
        {"inputs": hash, "embedded": whether it holds the embedded bundles and nothing else}
    """
    try:
        found = json.loads((out / STAMP).read_text("utf-8"))
        return {"inputs": found["inputs"], "embedded": found["embedded"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build_site(bundles: Sequence[Path], out: Path, options: SiteOptions | None = None) -> list[dict[str, Any]]:
    """Build the site of some bundles, unless `out` already holds the same.

    Args:
        bundles: folders, in the order in which the page offers them.
        out: made or replaced; a folder that holds anything but an earlier site is refused.
        options: see SiteOptions.

    Returns:
        the entries of models/index.json.

    Raises:
        BadBundle: a bundle that is missing, damaged, newer, or named like another one.
        BadArguments: no bundle at all, or an `out` that cannot be used.
    """
    options = options or SiteOptions()
    folders, out = [Path(folder) for folder in bundles], Path(out).absolute()
    if not folders:
        raise BadArguments("bundles: expected at least one, found none")
    opened = [open_bundle(folder) for folder in folders]
    earlier = read_stamp(out)
    if out.exists() and earlier is None and not (out.is_dir() and not any(out.iterdir())):
        raise BadArguments(f"{out}: expected an empty folder or an earlier site, found something else")
    for bundle in opened:
        bundle.verify()
    made_from = _make_stamp(folders, options)
    if earlier == made_from:
        return json.loads((out / "models" / "index.json").read_text("utf-8"))
    with swapped_folder(out) as new:
        entries = _write_site(new, opened, options)
        dump_json(new / STAMP, made_from)
    return entries
