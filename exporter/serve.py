"""A static web server for a site on this machine, with the media types that browsers insist on."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import BadArguments

HOST = "127.0.0.1"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".safetensors": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wgsl": "text/wgsl; charset=utf-8",
}


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    extensions_map = {"": "application/octet-stream", **MEDIA_TYPES}

    def log_message(self, format: str, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        # Shards are named by their content; everything else may change with the next build.
        fixed = self.path.endswith(".safetensors")
        self.send_header("Cache-Control", "public, max-age=31536000, immutable" if fixed else "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def list_directory(self, path: str) -> None:
        self.send_error(404)


def make_server(folder: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server bound to this machine only; `port` 0 takes a free one. Call `serve_forever` on it.

    Raises:
        BadArguments: the port cannot be used.
    """
    handler = functools.partial(_Handler, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadArguments(f"--port: expected a free port from 0 to 65535, found {port}: {reason}") from error


def url_of(server: http.server.ThreadingHTTPServer) -> str:
    """The address of a server, with a slash at the end."""
    return f"http://{HOST}:{server.server_address[1]}/"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder in the background on a free port; yields its URL."""
    server = make_server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield url_of(server)
    finally:
        server.shutdown()
        server.server_close()
