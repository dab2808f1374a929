"""A site without a model, whose runtime is tests/site/fake_client.js: for what the page itself does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from exporter.pages import write_pages
from exporter.serve import serving

FAKE_CLIENT = Path(__file__).with_name("fake_client.js")
SIZES = {
    "multiple": 16,
    "minimum": 64,
    "maximum": 512,
    "default": [256, 256],
    "presets": [[256, 256], [320, 192], [192, 320]],
}
MEMORY = {
    "256x256": {"encode": 90_000_000, "denoise": 80_000_000, "decode": 120_000_000},
    "320x192": {"encode": 90_000_000, "denoise": 79_000_000, "decode": 114_000_000},
    "192x320": {"encode": 90_000_000, "denoise": 79_000_000, "decode": 114_000_000},
}
CONVERTED = [
    {"needs": ["dots"], "bytes": {"256x256": 30_000_000, "320x192": 28_000_000, "192x320": 28_000_000}},
    {"needs": ["dots", "halves"], "bytes": {"256x256": 60_000_000, "320x192": 57_000_000, "192x320": 57_000_000}},
]
MODELS = [
    {
        "id": f"pocket-{variant}",
        "name": "pocket",
        "variant": variant,
        "weights": variant,
        "manifest": f"pocket-{variant}/manifest.json",
        "bytes": size,
        "other_bytes": 5_500_000,
        "steps": 4,
        "channels": 8,
        "sizes": SIZES,
        "memory": MEMORY,
        "converted": CONVERTED,
        "source": "",
        "license": "mit",
    }
    for variant, size in (("ternary", 14_700_000), ("binary", 11_300_000))
]


@pytest.fixture(scope="session")
def page_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose subfolder `some/where/` holds a site, so that every path must be relative."""
    root = tmp_path_factory.mktemp("pages")
    folder = root / "some" / "where"
    folder.mkdir(parents=True)
    write_pages(folder)
    (folder / "js" / "runtime" / "client.js").write_text(FAKE_CLIENT.read_text("utf-8"), encoding="utf-8")
    (folder / "models").mkdir()
    (folder / "models" / "index.json").write_text(json.dumps(MODELS), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def page_url(page_site: Path) -> Iterator[str]:
    with serving(page_site) as url:
        yield f"{url}some/where/"


Opened = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, page_url: str) -> Iterator[Opened]:
    """`open_page(fake={}, query="", **context)` opens the page and waits until it knows its adapter.

    At the end no page may have broken its security policy, logged an error or asked another host.
    """
    contexts = []
    faults: list[str] = []

    def opened(fake: dict[str, Any] | None = None, query: str = "", **options: Any) -> Page:
        options = {"viewport": {"width": 1200, "height": 900}, **options}
        context = browser.new_context(**options)
        contexts.append(context)
        context.add_init_script(f"globalThis.fake = {json.dumps(fake or {})};")
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        own = ("blob:", page_url)
        page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
        page.goto(page_url + query)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("body[data-state=ready], body[data-state=unsupported]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
