"""Many pictures in one browser session: a file of prompts becomes a folder of PNG files.

The file holds JSON lines: `id` (the file's name), `prompt` and, if they differ from the command line's,
`seed`, `width`, `height`. Pictures that the folder already has are kept, so an interrupted run goes on.
`summary.json` in the folder holds what the page said about each picture, and a hash of the site (which stands
for code and weights) that drew it. Latents, if asked for, become ID.npy in a folder of their own.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter import generate as page
from exporter.errors import BadArguments
from exporter.website import read_stamp

KEYS = {"id": str, "prompt": str, "seed": int, "width": int, "height": int}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # safe as a file name everywhere
SUMMARY = "summary.json"
ASKED = ("prompt", "seed", "width", "height", "steps")


@dataclass(frozen=True, slots=True)
class Job:
    """One picture: what to draw, and the name of its file without `.png`."""

    id: str
    request: page.Request

    @property
    def file(self) -> str:
        return f"{self.id}.png"


def _read_job(line: str, defaults: page.Request, sizes: dict[str, Any]) -> Job:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise BadArguments(f"expected a JSON object, found {line[:40]!r}") from error
    if not isinstance(given, dict) or not {"id", "prompt"} <= given.keys() <= KEYS.keys():
        raise BadArguments(f"expected an object with id, prompt and maybe seed, width, height, found {line[:80]!r}")
    for key, value in given.items():
        if type(value) is not KEYS[key]:
            kind = {str: "text", int: "a whole number"}[KEYS[key]]
            raise BadArguments(f"{key}: expected {kind}, found {json.dumps(value)[:40]}")
    name = given.pop("id")
    if not NAME.fullmatch(name):
        raise BadArguments(f"id: expected at most 100 letters, digits and any of _ . - inside, found {name!r}")
    given["prompt"] = given["prompt"].encode("utf-8", "replace").decode("utf-8")  # half a character stays harmless
    job = Job(name, replace(defaults, **given))
    page.check_request(job.request, sizes)
    return job


def read_jobs(path: Path, defaults: page.Request, sizes: dict[str, Any]) -> list[Job]:
    """The pictures that a file of JSON lines asks for; empty lines are skipped.

    Args:
        path: the file.
        defaults: seed, size and steps of lines that do not say.
        sizes: the manifest's `sizes`.

    Raises:
        BadArguments: no such file, or a line that cannot be drawn; the message has its number.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8"
        raise BadArguments(f"{path}: expected a file of JSON lines, found {reason}") from error
    jobs: dict[str, Job] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            job = _read_job(line, defaults, sizes)
            if job.id.lower() in jobs:
                raise BadArguments(f"id: expected each name once, found {job.id!r} again")
        except BadArguments as error:
            raise BadArguments(f"{path}, line {number}: {error}") from error
        jobs[job.id.lower()] = job  # file systems may not tell A from a
    if not jobs:
        raise BadArguments(f"{path}: expected at least one line, found none")
    return list(jobs.values())


def _earlier(folder: Path) -> dict[str, dict[str, Any]]:
    """What an earlier run wrote about the pictures in a folder, by id."""
    path = folder / SUMMARY
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8"))["pictures"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadArguments(f"{path}: expected the summary of an earlier run, found something else") from error


def _check_kept(path: Path, facts: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to take a picture for another one; a file without facts is taken as it is."""
    for key, value in wanted.items() if facts else ():
        if facts.get(key) != value:
            raise BadArguments(
                f"{path}: expected a picture with {key} {value!r}, found one with {facts.get(key)!r}: "
                "remove it or choose another folder"
            )


def _files(job: Job, folder: Path, latents: Path | None) -> list[Path]:
    """Where a picture goes and, if they are asked for, its latents."""
    return [folder / job.file, *([latents / f"{job.id}.npy"] if latents else [])]


def draw_all(
    site: Path,
    model: dict[str, Any],
    jobs: list[Job],
    folder: Path,
    write: Callable[[Path, bytes], None],
    adapter: str = "auto",
    setup: page.Setup | None = None,
    latents: Path | None = None,
) -> dict[str, Any]:
    """Draw the pictures that `folder` lacks, on one page that loads the model once; returns the summary.

    Args:
        site, model, adapter, setup: as for exporter.generate.generate.
        jobs: made by `read_jobs`.
        folder: gets ID.png and summary.json; exists.
        write: writes a file whole or not at all.
        latents: gets ID.npy, f32 [steps, image_tokens, channels]; exists. A picture without them is drawn again.

    Raises:
        BadArguments: the folder holds a picture of another prompt, seed, size, model, site or choice of kernels
            under one of the names.
        NoBrowser, BadBundle, BitbrushError: as exporter.generate.generate; the pictures made so far stay.
    """
    facts = _earlier(folder)
    setup = setup or page.Setup()
    made_by = {"model": model["name"], "variant": model["variant"], "site": (read_stamp(site) or {}).get("inputs")}
    made_by["forced"] = setup.kernels
    kept = [job for job in jobs if all(path.exists() for path in _files(job, folder, latents))]
    for job in (job for job in jobs if (folder / job.file).exists()):
        wanted = {name: getattr(job.request, name) for name in ASKED}
        _check_kept(folder / job.file, facts.get(job.id, {}), wanted | made_by)
    missing = [job for job in jobs if job not in kept]

    def summary(drawn: int) -> dict[str, Any]:
        unknown = {job.id: {"file": job.file} for job in kept}
        return {
            **made_by,
            "drawn": drawn,
            "kept": len(kept),
            "missing": len(missing) - drawn,
            "pictures": unknown | facts,
        }

    def save(drawn: int) -> None:
        text = json.dumps(summary(drawn), ensure_ascii=False, indent=1)
        write(folder / SUMMARY, text.encode())

    if missing:
        requests = [job.request for job in missing]
        wants_latents = latents is not None
        pictures = page.generate_many(site, model, requests, latents=wants_latents, adapter=adapter, setup=setup)
        for drawn, (job, picture) in enumerate(zip(missing, pictures, strict=True), 1):
            facts[job.id] = page.summary(picture, Path(job.file)) | made_by
            save(drawn)  # before the file: one that exists has its facts
            contents = [picture.png] if picture.latents is None else [picture.png, page.npy_bytes(picture.latents)]
            for path, content in zip(_files(job, folder, latents), contents, strict=True):
                write(path, content)
            print(f"{drawn} of {len(missing)}: {job.file}, {facts[job.id]['seconds']['total']} s", file=sys.stderr)
    save(len(missing))
    return summary(len(missing))
