"""Finds a Chromium-based browser, installs one where none is, and starts it headless with WebGPU.

Software adapters are asked for explicitly: a browser without a GPU otherwise offers none, and a test
that finds no adapter must fail rather than compute elsewhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from exporter.errors import NoBrowser

ENVIRONMENT_VARIABLE = "BITBRUSH_CHROME"
COMMANDS = ("google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "chrome", "msedge")
PATHS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
QUIET_FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# Nothing here may show a page features that a visitor's Chrome keeps to itself. Of a switch that comes twice, such as
# --enable-features, Chromium takes the last alone (Playwright's own list of features comes before and is dropped).
HARDWARE_FLAGS = ("--ignore-gpu-blocklist",)
LINUX_FLAGS = ("--enable-features=Vulkan", "--use-angle=vulkan", "--use-vulkan=native")
UNSAFE_FLAG = "--enable-unsafe-webgpu"
SOFTWARE_FLAGS = (UNSAFE_FLAG, "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")  # no adapter without
# Matrices of subgroups, and f16 on Nvidia's Linux driver: what visitors have only where they switch it on.
FEATURE_FLAGS = (UNSAFE_FLAG, "--enable-dawn-features=allow_unsafe_apis,vulkan_enable_f16_on_nvidia")
FINE_CLOCK = ("--enable-webgpu-developer-features",)  # timestamps as fine as the GPU's, not in steps of 0.1 ms
ADAPTERS = ("auto", "software", "hardware")


def has_gpu() -> bool:
    """Whether this machine shows a GPU to programs; other systems than Linux are taken to have one."""
    if not sys.platform.startswith("linux"):
        return True
    devices = Path("/dev")
    return any((devices / "dri").glob("renderD*")) or any(devices.glob("nvidia[0-9]*"))


def flags(adapter: str = "auto", *, headless: bool = True) -> list[str]:
    """Command line flags for WebGPU on this machine.

    Args:
        adapter: "software" for the CPU adapter, "hardware" for the GPU, "auto" for the GPU if there is one.
        headless: without a window; a GPU without a display is usable only so.

    Raises:
        ValueError: another adapter name.
    """
    if adapter not in ADAPTERS:
        raise ValueError(f"adapter: expected one of {', '.join(ADAPTERS)}, found {adapter!r}")
    software = adapter == "software" or (adapter == "auto" and not has_gpu())
    chosen = list(SOFTWARE_FLAGS if software else HARDWARE_FLAGS)
    if not software and sys.platform.startswith("linux"):
        chosen += [*LINUX_FLAGS, *(["--disable-vulkan-surface"] if headless else [])]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        chosen.append("--no-sandbox")  # Chromium refuses to start its sandbox as root
    return [*chosen, *QUIET_FLAGS]


def find(playwright: Playwright | None = None) -> str | None:
    """Path of a browser on this machine, or None.

    Looks at the environment variable BITBRUSH_CHROME, the command path, the usual places of macOS and
    Windows, then Playwright's own download.

    Raises:
        NoBrowser: BITBRUSH_CHROME is set but is no file.
    """
    wanted = os.environ.get(ENVIRONMENT_VARIABLE)
    if wanted:
        found = wanted if Path(wanted).is_file() else shutil.which(wanted)
        if not found:
            raise NoBrowser(f"{ENVIRONMENT_VARIABLE}: expected the path of a browser, found {wanted!r}, no such file")
        return found
    for command in COMMANDS:
        if found := shutil.which(command):
            return found
    for path in PATHS:
        if Path(path).is_file():
            return path
    if playwright and Path(playwright.chromium.executable_path).is_file():
        return playwright.chromium.executable_path
    return None


def _run(command: list[str]) -> bool:
    """Run an installer; its output goes to stderr. True if it ended well."""
    print("installing a browser:", " ".join(command), file=sys.stderr)
    try:
        return subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


def install(playwright: Playwright) -> str:
    """Install a browser and return its path.

    As root on Debian and its like by apt-get, else by Playwright's own installer.

    Raises:
        NoBrowser: neither worked; the message says what to do by hand.
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = ["apt-get", "-qq", "-o=Dpkg::Use-Pty=0"]
        if _run([*quiet, "update"]):
            _run(["env", "DEBIAN_FRONTEND=noninteractive", *quiet, "install", "-y", "chromium"])
    if not (found := find(playwright)):
        _run([sys.executable, "-m", "playwright", "install", "chromium"])
        found = find(playwright)
    if not found:
        raise NoBrowser(
            "expected Chrome, Chromium or Edge on this machine, found none and could not install one: install "
            f"one by hand, or set {ENVIRONMENT_VARIABLE} to the path of its program"
        )
    return found


@contextmanager
def launch(adapter: str = "auto", *, headless: bool = True, extra: tuple[str, ...] = ()) -> Iterator[Browser]:
    """Start a browser with WebGPU and close it at the end.

    Args:
        adapter: see `flags`.
        headless: False shows the window.
        extra: further command line flags.

    Yields:
        a Playwright browser (synchronous API). WebGPU needs pages from http://localhost or https.

    Raises:
        NoBrowser: none found and none could be installed, or the one found does not start.
    """
    with sync_playwright() as playwright:
        path = find(playwright) or install(playwright)
        wanted = [*flags(adapter, headless=headless), *extra]
        try:
            browser = playwright.chromium.launch(executable_path=path, headless=headless, args=wanted)
        except PlaywrightError as error:
            reason = str(error).strip().splitlines()[0]
            raise NoBrowser(f"expected {path} to start, found: {reason}") from error
        try:
            yield browser
        finally:
            browser.close()
