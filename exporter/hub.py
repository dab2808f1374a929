"""Checkpoints on the Hugging Face Hub: `OWNER/NAME` or `OWNER/NAME@REVISION` in place of a folder.

The revision is resolved to a commit first and every file is read at that commit, so the commit that a
bundle's manifest names is what was read. Only files that the exporter opens are downloaded; they go to
the cache that all programs with `huggingface_hub` share. Addresses other than huggingface.co are
set with HF_ENDPOINT, tokens with `hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import BadArguments, BadCheckpoint, BitbrushError
from exporter.hub_files import choose
from exporter.jsonfile import read_json

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoSibling

Progress = Callable[[str, int, int], None]  # (what, bytes done, bytes in all)

TIMEOUT = 30  # seconds that the Hub may take to say what a repository holds
TOKEN_HELP = "give the exporter a token that may read it (`hf auth login`, or HF_TOKEN); a page never needs one"

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ID = re.compile(rf"({_PART}/{_PART})(?:@(.+))?", re.DOTALL)
_NO_REVISION = re.compile(r"[\s\x00-\x1f\x7f~^:?*\[\\]|\.\.|^[-/]|/$")  # what git allows in no name
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Fetched:
    """A checkpoint from the Hub: the folder it lies in, its id `OWNER/NAME`, and the commit (40 hex digits)."""

    path: Path
    id: str
    commit: str


def is_id(text: str) -> bool:
    """Whether an argument means a repository of the Hub: nothing of that name is here, and it has one slash.

    Malformed ids count, too; `fetch` reports them. `./a/b`, `a/b/c` and `a` are always paths.
    """
    if os.path.exists(text):
        return False
    repository = text.partition("@")[0]
    looks_local = repository.startswith((".", "/", "~")) or repository.endswith("/") or "\\" in text
    return "://" in text or (repository.count("/") == 1 and not looks_local)


def parse(text: str) -> tuple[str, str | None]:
    """`OWNER/NAME[@REVISION]` -> (id, revision or None). Raises BadArguments."""
    match = _ID.fullmatch(text)
    if not match or (match[2] is not None and _NO_REVISION.search(match[2])):
        raise BadArguments(
            "checkpoint: expected a folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face Hub,"
            f" found {text!r:.200}"
        )
    return match[1], match[2]


def fetch(id: str, *, cache: Path | None = None, progress: Progress = lambda what, done, total: None) -> Fetched:
    """Download what the exporter needs of a repository, at one commit.

    Args:
        id: `OWNER/NAME` or `OWNER/NAME@REVISION`; the revision is a branch, tag or commit.
        cache: folder for the files; the one of `huggingface_hub` (HF_HOME, HF_HUB_CACHE) if None.
        progress: called with a file's path, bytes that are here and bytes in all.

    Files that are in the cache are not downloaded again. After an error the cache holds whole files only.

    Raises:
        BadArguments: `id` is malformed.
        BadCheckpoint: no such repository or revision, a gated or private one, one without
            model_index.json, no network, no room on the disk, or other bytes than the commit lists.
        BitbrushError: `huggingface_hub` is not installed.
    """
    repository, revision = parse(id)
    if importlib.util.find_spec("huggingface_hub") is None:
        raise BitbrushError(
            "export: expected the Python package huggingface_hub, found none: pip install -e '.[export]'"
        )
    from huggingface_hub import constants

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    download = _Download(id, repository, revision, endpoint, Path(cache or constants.HF_HUB_CACHE), progress)
    return Fetched(download.run(), repository, download.commit)


@dataclass
class _Download:
    """One download of a repository; `commit` is known once the Hub has answered."""

    label: str  # the id as it was given
    repository: str
    revision: str | None
    endpoint: str
    cache: Path
    progress: Progress
    commit: str = ""
    total: int = 0  # bytes of all files
    done: int = 0  # bytes of the files that were taken, from the network or the cache
    missing: int = 0  # bytes still to come from the network

    def run(self) -> Path:
        """Download all files; returns their folder."""
        listed = self._look_up()
        chosen = choose(self.label, listed, lambda name: self._read_index(listed[name]))
        plans = [(listed[name], self._plan(listed[name])) for name in chosen]
        self.total = sum(file.size or 0 for file, _ in plans)
        self.missing = sum(file.size or 0 for file, plan in plans if plan.will_download)
        self._check_room()
        folder = Path()
        for file, plan in plans:
            folder = self._get(file, plan).parents[file.rfilename.count("/")]
        return folder

    def _look_up(self) -> dict[str, RepoSibling]:
        """Ask the Hub for the commit of the revision and for its files, by path."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint)
        try:
            info = api.model_info(self.repository, revision=self.revision, files_metadata=True, timeout=TIMEOUT)
        except Exception as error:  # of the library, its transport or the answer's JSON
            raise self._explain(error) from error
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise BadCheckpoint(f"{self.label}: expected a commit from {self.endpoint}, found {info.sha!r:.60}")
        self.commit = info.sha
        return {file.rfilename: file for file in info.siblings or []}

    def _call_for(self, file: RepoSibling, **options: Any) -> Any:
        """`hf_hub_download` for a file of the commit."""
        from huggingface_hub import hf_hub_download

        place = {"revision": self.commit, "endpoint": self.endpoint, "cache_dir": self.cache}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Not enough free disk space")  # the error says it
                return hf_hub_download(self.repository, file.rfilename, **place, **options)
        except Exception as error:  # of the library, its transports (HTTP, Xet) or the disk
            raise self._explain(error, file) from error

    def _read_index(self, file: RepoSibling) -> dict[str, Any]:
        """JSON of an index, which says what files are needed and comes before them."""
        return read_json(self._get(file, self._plan(file)), f"{self.label}: {file.rfilename}")

    def _plan(self, file: RepoSibling) -> DryRunFileInfo:
        """Where a file is or will be, at the commit that was asked for."""
        plan: DryRunFileInfo = self._call_for(file, dry_run=True)
        if plan.commit_hash != self.commit:
            raise BadCheckpoint(
                f"{self.label}: {file.rfilename}: expected it at commit {self.commit}, found {plan.commit_hash}"
            )
        return plan

    def _get(self, file: RepoSibling, plan: DryRunFileInfo) -> Path:
        """Have one file in the cache and check that it is what the commit lists."""
        name, here, fresh = file.rfilename, 0, plan.will_download

        def more(count: int) -> None:
            nonlocal here
            here += count
            if self.total:  # not yet for an index
                self.progress(name, min(self.done + here, self.total), self.total)

        more(0)
        path = Path(self._call_for(file, tqdm_class=_bar(more)))
        if not fresh and file.size not in (None, path.stat().st_size):  # what a broken copy left in the cache
            here, fresh = 0, True
            path = Path(self._call_for(file, tqdm_class=_bar(more), force_download=True))
        if fresh and not _as_listed(path, file):
            path.resolve().unlink()  # the file itself, of which the snapshot's is a link
            path.unlink(missing_ok=True)
            raise BadCheckpoint(f"{self.label}: {name}: expected the bytes that the commit lists, found others")
        if self.total:
            self.done += file.size or 0
            self.missing -= (file.size or 0) if plan.will_download else 0
            self.progress(name, self.done, self.total)
        return path

    def _check_room(self) -> None:
        """Refuse before the first weight what cannot fit."""
        place = next(folder for folder in (self.cache, *self.cache.absolute().parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if free < self.missing:
            raise BadCheckpoint(self._no_room(_size(free)))

    def _no_room(self, found: str) -> str:
        return (
            f"{self.label}: expected {_size(self.missing)} free in {self.cache} for the files still to come,"
            f" found {found}; make room, or set HF_HOME to a folder on another disk"
        )

    def _explain(self, error: Exception, file: RepoSibling | None = None) -> BitbrushError:
        """One line for what the library raised."""
        from huggingface_hub import errors

        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if isinstance(error, errors.HFValidationError):
            return BadArguments(f"checkpoint: expected OWNER/NAME on the Hugging Face Hub, found {self.label!r:.200}")
        said = " ".join(str(error).split()) or type(error).__name__
        what = file.rfilename if file else "it"
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in said:  # Xet has no number
            return BadCheckpoint(self._no_room(f"the disk full at {what}"))
        if number is not None:
            return BadCheckpoint(f"{self.label}: expected to write {what} into {self.cache}, found: {said}")
        if isinstance(error, errors.HfHubHTTPError):
            return BadCheckpoint(f"{self.label}: {self._refusal(error, what)}")
        expected = f"{self.label}: expected to read {what} from {self.endpoint}"
        if isinstance(error, errors.OfflineModeIsEnabled):
            return BadCheckpoint(f"{expected}, found HF_HUB_OFFLINE set; unset it, or give a local folder")
        if file is None and isinstance(error, ValueError | KeyError | TypeError):
            return BadCheckpoint(f"{expected}, found an answer that is none of a Hub's; is HF_ENDPOINT right?")
        return BadCheckpoint(f"{expected}, found: {said}; check the network, or give a local folder")

    def _refusal(self, error: HfHubHTTPError, what: str) -> str:
        """What a status of the Hub means."""
        from huggingface_hub import errors

        page = f"{self.endpoint}/{self.repository}"
        status = error.response.status_code
        if isinstance(error, errors.GatedRepoError):
            return f"expected an open repository, found a gated one; accept its terms at {page}, then {TOKEN_HELP}"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"expected a branch, tag or commit {self.revision or 'main'} of {page}, found none"
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"expected a local folder or {page}, found neither; if it is private, {TOKEN_HELP}"
        if isinstance(error, errors.DisabledRepoError):
            return f"expected an open repository, found {page} disabled by the Hub"
        if status in (401, 403):
            return f"expected leave to read {page}, found status {status}; {TOKEN_HELP}"
        later = "; try again later" if status == 429 or status >= 500 else ""
        return f"expected to read {what} from {page}, found status {status}{later}"


def _as_listed(path: Path, file: RepoSibling) -> bool:
    """Whether a file has the size and the hash that the Hub lists: SHA-256, or git's SHA-1 of small files."""
    size = path.stat().st_size
    if file.size not in (None, size):
        return False
    if file.lfs is not None:
        with path.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest() == file.lfs.sha256
    blob = b"blob %d\0" % size + path.read_bytes()
    return file.blob_id in (None, hashlib.sha1(blob, usedforsecurity=False).hexdigest())


def _bar(more: Callable[[int], None]) -> type:
    """A class that stands where `huggingface_hub` makes a tqdm bar, and tells `more` of each piece."""

    class Bar:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *problem: object) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            more(int(count or 0))

        def update_transfer(self, count: float | None = 1) -> None:
            """Bytes on the wire; `update` counts those on the disk."""

        def set_postfix_str(self, text: str, refresh: bool = False) -> None:
            pass

        set_transfer_postfix_str = set_postfix_str

        def close(self) -> None:
            pass

    return Bar


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
