"""A Hub on this machine for every test of the folder; nothing leaves 127.0.0.1."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from tests.hub.server import Hub, serve


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch) -> Iterator[None]:
    """Whatever the environment says, no name is looked up and no other machine is spoken to."""
    strays: list[object] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address) -> None:
        if address[0] != "127.0.0.1":
            strays.append(address)
            raise OSError(errno.ENETUNREACH, "no test speaks to another machine")
        connect(self, address)

    look_up = socket.getaddrinfo

    def guarded_look_up(host, *arguments, **options):
        if host not in ("127.0.0.1", b"127.0.0.1"):
            strays.append(host)
            raise socket.gaierror(socket.EAI_NONAME, "no test speaks to another machine")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()
    assert not strays


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A Hub that `fetch` asks, with an empty cache and no token of this machine."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
