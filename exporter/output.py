"""Folders that appear all at once or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter import manifest as manifests
from exporter.errors import BadArguments, BadBundle, DiskFull


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """`swapped_folder` for a bundle: replaces a bundle or an empty folder, refuses any other content."""
    if out.exists() and not _replaceable(out):
        raise BadArguments(
            f"{out.resolve()}: expected a new folder or a bundle to replace, found something else; nothing was changed"
        )
    with swapped_folder(out) as work:
        yield work


@contextmanager
def swapped_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` that takes the place of `out` at the end, all or nothing.

    Whatever was at `out` is replaced; after an error it is there as before. Raises BadArguments for
    places that cannot be written, DiskFull if the disk fills up.
    """
    out = out.resolve()
    work = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
    except OSError as problem:
        raise BadArguments(f"{out}: expected a folder that can be written, found: {problem.strerror}") from None
    old = work.with_suffix(".old")
    try:
        yield work
        if out.exists():
            out.rename(old)
        work.rename(out)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            written = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
            raise DiskFull(
                f"{out}: expected more room on the disk, found it full after {written / 1e6:.0f} MB;"
                " nothing was changed"
            ) from None
        raise BadArguments(
            f"{out}: expected a folder that can be written, found: {problem.strerror or problem}"
        ) from None
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _replaceable(out: Path) -> bool:
    if not out.is_dir():
        return False
    if not any(out.iterdir()):
        return True
    try:
        manifests.load(out)
    except BadBundle:
        return manifests.is_older(out)
    return True
