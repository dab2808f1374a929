"""A page with the runtime's modules, and a small library to call them from Python."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from exporter.packages import ROOT, node_package
from exporter.publish import write_kernels

PAGE = "<!doctype html><meta charset=utf-8><title>runtime</title>"
# Arrays cross the border as base64: JSON has no NaN and loses what kind of number they are.
HELPERS = """
globalThis.load = (name) => import(new URL(`js/runtime/${name}.js`, location.href).href);
globalThis.toBase64 = (array) => {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
};
globalThis.fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
globalThis.failure = async (action) => {
  try {
    await action();
  } catch (error) {
    return { name: error.name, code: error.code, message: error.message, hint: error.hint };
  }
  return null;
};
"""


def array(text: str, dtype: str = "float32") -> np.ndarray:
    """What `toBase64` made of a typed array."""
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


@pytest.fixture(scope="session")
def site_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime as the site serves it, with an empty page beside it."""
    folder = tmp_path_factory.mktemp("runtime")
    shutil.copytree(ROOT / "site" / "js" / "runtime", folder / "js" / "runtime")
    (folder / "js" / "vendor").mkdir()
    library = node_package("@huggingface/tokenizers") / "dist" / "tokenizers.mjs"
    shutil.copyfile(library, folder / "js" / "vendor" / "tokenizers.js")
    (folder / "index.html").write_text(PAGE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def site_url(site_folder: Path, local_server: Callable[[Path], str]) -> str:
    return local_server(site_folder)


def copy_with_kernels(site_folder: Path, folder: Path, plan: dict[str, Any]) -> Path:
    """`folder`, made: the runtime's files with the kernels that a plan needs."""
    shutil.copytree(site_folder, folder)
    (folder / "kernels").mkdir()
    write_kernels(folder / "kernels", [plan])
    return folder


@contextmanager
def open_page(browser: Browser, url: str) -> Iterator[Page]:
    """A page with `load(module)` and nothing cached; an uncaught script error on it fails the test."""
    context = browser.new_context()
    opened = context.new_page()
    errors: list[Any] = []
    opened.on("pageerror", lambda error: errors.append(error))
    opened.add_init_script(HELPERS)
    opened.goto(f"{url}/index.html")
    yield opened
    context.close()
    assert not errors


@pytest.fixture(scope="session")
def calculator(browser: Browser, site_url: str) -> Iterator[Page]:
    """One page for everything that only computes."""
    with open_page(browser, site_url) as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, site_url: str) -> Iterator[Page]:
    """A fresh page, for what caches or opens a device."""
    with open_page(browser, site_url) as opened:
        yield opened
