"""A small Hugging Face Hub on 127.0.0.1 that speaks what a download needs, and goes wrong on demand."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

LARGE = re.compile(r".*\.(safetensors|pt|gguf)")  # kept with Git LFS: SHA-256, a redirect to another address


def commit_of(number: int) -> str:
    return hashlib.sha1(b"commit %d" % number).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """`commits` gives the files of a commit, `refs` the commit of a branch or tag; a `token` opens what is shut."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    access: str = "open"  # or gated, private
    token: str = "hf_right"


@dataclass
class Hub:
    """What the server holds, what it was asked (method and path), and what is to go wrong."""

    url: str = ""
    store: str = ""  # address of the large files: another origin, as the Hub's is, which gets no token
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    stored_tokens: set[str | None] = field(default_factory=set)
    ranges: list[str] = field(default_factory=list)
    status: int = 200  # other than 200: what every question is answered with
    text: bytes = b""  # not empty: what every question for a repository is answered with
    cut: int | None = None  # break the next large file off after so many bytes
    spoil: str | None = None  # file of which other bytes of the right length are sent
    move: dict[str, str] = field(default_factory=dict)  # refs that change once a repository has been looked up

    def add(self, name: str, files: dict[str, bytes], number: int = 1, **options: str) -> str:
        """A repository with one commit, which `main` names; returns the commit."""
        commit = commit_of(number)
        self.repositories[name] = Repository({commit: files}, {"main": commit}, **options)
        return commit

    def downloads(self) -> list[str]:
        """Paths of what was sent as a whole file."""
        return [line[4:] for line in self.asked if re.match(r"GET /(cdn/.*|[^/]+/[^/]+/resolve/.*)", line)]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a header and its body are two writes
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer()

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        (self.hub.stored_tokens if path.startswith("/cdn/") else self.hub.tokens).add(token)
        if self.hub.status != 200:
            self._send(self.hub.status, b"", {"X-Error-Message": "no"})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path):
            self._file(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
            self._bytes(self.hub.repositories[match[1]].commits[match[2]][match[3]])
        else:
            self._send(404, b"", {})

    def _refused(self, name: str, info: bool) -> bool:
        """Answer for a repository that is not there or shut; True if that was done."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        found = self.hub.repositories.get(name)
        if found and (found.access == "open" or token == found.token or (info and found.access == "gated")):
            return False
        if found and found.access == "gated":
            self._send(403 if token else 401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif token == "hf_invalid":
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        else:
            self._send(404 if token else 401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "none"})
        return True

    def _info(self, name: str, revision: str) -> None:
        if self._refused(name, info=True):
            return
        if self.hub.text:
            return self._send(200, self.hub.text, {"Content-Type": "text/html"})
        repository = self.hub.repositories[name]
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "none"})
        siblings = []
        for path, data in repository.commits[commit].items():
            entry = {"rfilename": path, "size": len(data), "blobId": git_hash(data)}
            if LARGE.fullmatch(path):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        answer = {"_id": "0", "id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        repository.refs.update(self.hub.move)
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, commit: str, path: str) -> None:
        if self._refused(name, info=False):
            return
        files = self.hub.repositories[name].commits.get(commit)
        if files is None or path not in files:
            code = "RevisionNotFound" if files is None else "EntryNotFound"
            return self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": "none"})
        data = files[path]
        headers = {"X-Repo-Commit": commit}
        if not LARGE.fullmatch(path):
            return self._bytes(data, {**headers, "ETag": f'"{git_hash(data)}"'})
        headers["X-Linked-Size"] = str(len(data))
        headers["X-Linked-ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        self._send(302, b"", {**headers, "Location": f"{self.hub.store}/cdn/{name}/{commit}/{path}"})

    def _bytes(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        """A file, or the range of it that was asked for, or what is to go wrong."""
        status, total = 200, len(data)
        headers = {"ETag": f'"{git_hash(data)}"', "Accept-Ranges": "bytes", **(headers or {})}
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            status, data = 206, data[start:]
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if self.hub.spoil and unquote(self.path).endswith(f"/{self.hub.spoil}"):
            data = bytes([data[0] ^ 1]) + data[1:]
        cut = None
        if self.command == "GET" and self.hub.cut is not None and len(data) > self.hub.cut:
            cut, self.hub.cut = self.hub.cut, None
        self._send(status, data, headers, cut)

    def _send(self, status: int, data: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub without repositories on free ports of 127.0.0.1."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.url, hub.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True) for server in servers
    ]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
