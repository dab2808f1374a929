"""Pictures from the command line: opens the built page in headless Chrome, fills in its form, presses
Generate and takes what Save writes. It is the visitor's own way through the page, with no other.
"""

from __future__ import annotations

import base64
import hashlib
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page

from exporter.browser import FEATURE_FLAGS, launch
from exporter.errors import BadArguments, BadBundle, BitbrushError, NoBrowser
from exporter.serve import serving

MAXIMUM_SEED = 2**53 - 1
MAXIMUM_STEPS = 1000  # as site/js/runtime/request.js has them
POLL_MS = 100
START_MS = 60_000

# Codes of the runtime's errors that have an exit code of their own; all others end with 1.
ERRORS: dict[str, type[BitbrushError]] = {
    "no-webgpu": NoBrowser,
    "no-adapter": NoBrowser,
    "limit-too-low": NoBrowser,
    "bad-bundle": BadBundle,
    "hash-mismatch": BadBundle,
    "bad-request": BadArguments,
}

_STATE = """() => ({
    state: document.body.dataset.state,
    phase: document.getElementById("phase").textContent,
    notice: document.getElementById("notice").hidden ? null : document.getElementById("notice").dataset.code,
    error: document.getElementById("error").hidden ? null : {...document.getElementById("error").dataset},
    invalid: document.querySelector(".field-error:not([hidden])")?.textContent ?? null,
})"""
_FACTS = """() => {
    const {pixels, latents, ...facts} = document.getElementById("result").bitbrush;
    return facts;
}"""
_LATENTS = """() => {
    const {buffer, byteOffset, byteLength} = document.getElementById("result").bitbrush.latents;
    const bytes = new Uint8Array(buffer, byteOffset, byteLength);
    let text = "";
    for (let start = 0; start < bytes.length; start += 32768) {
        text += String.fromCharCode(...bytes.subarray(start, start + 32768));
    }
    return btoa(text);
}"""


@dataclass(frozen=True, slots=True)
class Request:
    """What to draw."""

    prompt: str
    width: int
    height: int
    steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Setup:
    """What differs from a visitor's browser.

    kernels         name of the variant of every kernel that has it; None leaves the choice to the page
    all_features    with what browsers keep behind flags
    """

    kernels: str | None = None
    all_features: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG file's bytes, what the page says about it, and the latents f32[steps, image_tokens, channels]."""

    png: bytes
    facts: dict[str, Any]
    latents: np.ndarray | None


def npy_bytes(values: np.ndarray) -> bytes:
    """The contents of an .npy file."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def summary(picture: Picture, file: Path) -> dict[str, Any]:
    """The facts that the command line prints: seconds by phase and in total, GPU bytes at most in each phase."""
    facts = picture.facts
    kept = ("prompt", "seed", "width", "height", "steps", "model", "variant", "adapter", "kernels", "peak_bytes")
    seconds = {**facts["timings"], "total": facts["seconds"]}
    return {
        "file": str(file),
        **{name: facts[name] for name in kept},
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "sha256": hashlib.sha256(picture.png).hexdigest(),
    }


def check_request(request: Request, sizes: dict[str, Any]) -> None:
    """Refuse what the page's form would refuse, before a browser is started.

    Raises:
        BadArguments: a size, seed or number of steps outside what the model and the noise take.
    """
    multiple, minimum, maximum = sizes["multiple"], sizes["minimum"], sizes["maximum"]
    for name, value in (("width", request.width), ("height", request.height)):
        if value % multiple or not minimum <= value <= maximum:
            raise BadArguments(
                f"--size, {name}: expected a multiple of {multiple} from {minimum} to {maximum}, found {value}"
            )
    if not 1 <= request.steps <= MAXIMUM_STEPS:
        raise BadArguments(f"--steps: expected a whole number from 1 to {MAXIMUM_STEPS}, found {request.steps}")
    if not 0 <= request.seed <= MAXIMUM_SEED:
        raise BadArguments(f"--seed: expected a whole number from 0 to {MAXIMUM_SEED}, found {request.seed}")


def _raise_for(state: dict[str, Any]) -> None:
    """Turn what the page shows into the error of its kind."""
    if state["error"]:
        code, message = state["error"].get("code", "unknown"), state["error"].get("message", "")
        raise ERRORS.get(code, BitbrushError)(f"{code}: {message}")
    if state["notice"]:
        raise ERRORS.get(state["notice"], BitbrushError)(
            f"{state['notice']}: expected a browser with WebGPU and an adapter, found none"
        )
    if state["invalid"]:
        raise BadArguments(state["invalid"])


def _wait(page: Page, states: tuple[str, ...], report: Callable[[str], None]) -> dict[str, Any]:
    """Wait until the page is in one of `states`, reporting each new phase line on the way."""
    while True:
        state = page.evaluate(_STATE)
        report(state["phase"])
        if state["state"] in states:
            return state
        page.wait_for_timeout(POLL_MS)


def _fill(page: Page, model: str, request: Request) -> None:
    page.select_option("#model", model)
    page.check("#lock")  # else the page would not use a seed twice
    page.fill("#prompt", request.prompt)
    for name in ("width", "height", "steps", "seed"):
        page.fill(f"#{name}", str(getattr(request, name)))


def _draw(page: Page, model: str, request: Request, report: Callable[[str], None]) -> tuple[bytes, dict[str, Any]]:
    """Press Generate and Save; returns the file's bytes and the page's facts about the picture."""
    page.wait_for_selector("body[data-state=ready], body[data-state=unsupported]", timeout=START_MS)
    _raise_for(page.evaluate(_STATE))
    _fill(page, model, request)
    page.click("#generate")
    _raise_for(_wait(page, ("ready", "unsupported"), report))
    with page.expect_download() as started:
        page.click("#save")
    return Path(started.value.path()).read_bytes(), page.evaluate(_FACTS)


def _read_latents(page: Page, steps: int, channels: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(page.evaluate(_LATENTS)), "<f4").reshape(steps, -1, channels)


def _reporter() -> Callable[[str], None]:
    """Prints each phase and each step once on stderr, not every number in between."""
    last = ""

    def report(line: str) -> None:
        nonlocal last
        name = line if line.endswith(" steps") else line.partition(":")[0].rstrip("…")
        if name != last:
            print(name, file=sys.stderr)
            last = name

    return report


def generate(
    site: Path,
    model: dict[str, Any],
    request: Request,
    *,
    latents: bool = False,
    adapter: str = "auto",
    setup: Setup | None = None,
) -> Picture:
    """Draw a picture with a built site.

    Args:
        site: folder made by exporter.website.build_site.
        model: the entry of the site's models/index.json to draw with.
        request: checked by `check_request`.
        latents: also take the latents after each step out of the page.
        adapter: see exporter.browser.launch.
        setup: kernels and features that are not the page's own choice.

    Raises:
        NoBrowser: no browser, no WebGPU, no adapter, or limits too low for the picture.
        BadBundle: the page found its model damaged.
        BitbrushError: anything else that the page reported, or a browser that broke down.
    """
    with _opened(site, adapter, setup or Setup(), latents) as page:
        png, facts = _draw(page, model["id"], request, _reporter())
        values = _read_latents(page, request.steps, model["channels"]) if latents else None
    return Picture(png, facts, values)


def generate_many(
    site: Path,
    model: dict[str, Any],
    requests: list[Request],
    *,
    latents: bool = False,
    adapter: str = "auto",
    setup: Setup | None = None,
) -> Iterator[Picture]:
    """Draw pictures one after the other on one page, which loads the model once.

    Arguments and errors are those of `generate`.
    """
    with _opened(site, adapter, setup or Setup(), latents) as page:
        for request in requests:
            png, facts = _draw(page, model["id"], request, lambda line: None)
            yield Picture(png, facts, _read_latents(page, request.steps, model["channels"]) if latents else None)


@contextmanager
def _opened(site: Path, adapter: str, setup: Setup, latents: bool = False) -> Iterator[Page]:
    """The page of a built site in a browser; what breaks there while it is used becomes one line."""
    query = {**({"latents": "1"} if latents else {}), **({"variant": setup.kernels} if setup.kernels else {})}
    with serving(site) as url, launch(adapter, extra=FEATURE_FLAGS if setup.all_features else ()) as browser:
        page = browser.new_page(accept_downloads=True)
        try:
            page.goto(f"{url}?{urlencode(query)}" if query else url)
            yield page
        except PlaywrightError as error:
            reason = str(error).strip().splitlines()[0]
            raise BitbrushError(f"browser: expected the page to finish, found: {reason}") from error
