"""Fixtures that several test folders share: one browser and small localhost servers."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from exporter.browser import FEATURE_FLAGS, launch
from tests import pipelines


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}

    def log_message(self, format: str, *args: object) -> None:
        pass


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--adapter",
        choices=("software", "hardware"),
        default="software",
        help="WebGPU adapter of the browser tests: the CPU's, or this machine's GPU with all features it has",
    )


@pytest.fixture(scope="session")
def browser(pytestconfig: pytest.Config) -> Iterator[Browser]:
    """Headless Chromium with the adapter asked for, one for the whole session."""
    adapter = pytestconfig.getoption("adapter")
    with launch(adapter, extra=FEATURE_FLAGS if adapter == "hardware" else ()) as launched:
        yield launched


@pytest.fixture(scope="session")
def local_server() -> Iterator[Callable[[Path], str]]:
    """`local_server(folder)` serves a folder on localhost (a secure context) and returns its URL."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(folder: Path) -> str:
        handler = functools.partial(_QuietHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[..., Path]:
    """`exported(name[, weights])` is the bundle of one of `tests.pipelines.CONFIGURATIONS`, made once."""
    folder = tmp_path_factory.mktemp("pipelines")
    made = functools.cache(lambda name, weights: pipelines.export(name, folder, weights))
    return lambda name, weights=None: made(name, weights or pipelines.CONFIGURATIONS[name].weights)
