"""Shipped schedules draw from the table; other steps fetch the optional weights, once, and draw as well."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from exporter.website import build_site
from tests.reference import diffusers_picture, relative_error
from tests.runtime.conftest import array, open_page
from tests.runtime.test_client import check_progress

FOLDER = "models/two-heads-ternary-ternary"
REQUEST = {"prompt": "a red apple", "width": 64, "height": 96, "steps": 4, "seed": 9909}
SCRIPT = """async () => {
  const { createClient } = await load("client");
  globalThis.client = createClient();
  globalThis.draw = async (request, cancelAt) => {
    const events = [];
    const controller = new AbortController();
    const onProgress = (event) => { events.push(event); if (event.phase === cancelAt) controller.abort(); };
    let latents = null;
    const error = await failure(async () => {
      const picture = await client.generate(request, { onProgress, signal: controller.signal, latents: true });
      latents = toBase64(picture.latents);
    });
    return { events, error, latents, memory: await client.memory() };
  };
  return true;
}"""
CACHED = """async () => (await (await caches.open("bitbrush-shards")).keys()).map(({ url }) => url.split("/").pop())"""


@pytest.fixture(scope="module")
def bundle(exported: Callable[[str], Path]) -> Path:
    return exported("two-heads-ternary")


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def url(
    bundle: Path,
    manifest: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    local_server: Callable[[Path], str],
) -> str:
    """A site with two more manifests: `unfolded.json`, whose table has no time that ever comes, and `longer.json`,
    whose denoiser takes more than a row of the table."""
    site = tmp_path_factory.mktemp("modulation") / "dist"
    build_site([bundle], site)
    served = json.loads((site / FOLDER / "manifest.json").read_text("utf-8"))
    served["modulation"]["sigmas"] = [-1 for _ in served["modulation"]["sigmas"]]
    (site / FOLDER / "unfolded.json").write_text(json.dumps(served), encoding="utf-8")
    served = json.loads((site / FOLDER / "manifest.json").read_text("utf-8"))
    plan = json.loads((site / FOLDER / served["components"]["denoiser"]["plan"]).read_text("utf-8"))
    next(value for value in plan["values"] if value["name"] == "modulation")["elements"] += 4
    (site / FOLDER / "longer.plan.json").write_text(json.dumps(plan), encoding="utf-8")
    served["components"]["denoiser"]["plan"] = "longer.plan.json"
    (site / FOLDER / "longer.json").write_text(json.dumps(served), encoding="utf-8")
    return local_server(site)


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with open_page(browser, url) as opened:
        assert opened.evaluate(SCRIPT)
        yield opened


def load(page: Page, name: str = "manifest.json") -> dict[str, Any]:
    return page.evaluate("(url) => client.load(new URL(url, location.href).href)", f"{FOLDER}/{name}")


def draw(page: Page, cancel_at: str | None = None, **changes: Any) -> dict[str, Any]:
    made = page.evaluate("([request, at]) => draw(request, at)", [{**REQUEST, **changes}, cancel_at])
    if made["latents"] is not None:
        made["latents"] = array(made["latents"]).reshape(changes.get("steps", REQUEST["steps"]), -1)
    return made


def optional_shards(manifest: dict[str, Any]) -> set[str]:
    tensors = manifest["components"]["modulation"]["tensors"].values()
    return {manifest["shards"][part["shard"]]["sha256"] for tensor in tensors for part in tensor["parts"]}


def test_only_other_steps_fetch_the_optional_shards(page: Page, manifest: dict[str, Any]) -> None:
    every, optional = {shard["sha256"] for shard in manifest["shards"]}, optional_shards(manifest)
    loaded = load(page)
    assert loaded["bytes"] == sum(shard["bytes"] for shard in manifest["shards"] if shard["sha256"] not in optional)
    shipped = draw(page)
    check_progress(shipped["events"], ["encode", "denoise", "decode"])
    assert set(page.evaluate(CACHED)) == every - optional
    other = draw(page, steps=3)
    check_progress(other["events"], ["download", "denoise", "decode"])
    assert other["events"][0]["total"] == sum(s["bytes"] for s in manifest["shards"] if s["sha256"] in optional)
    assert set(page.evaluate(CACHED)) == every
    assert other["memory"] == shipped["memory"] and "weights:modulation" not in shipped["memory"]["byLabel"]
    again = draw(page, steps=3)
    check_progress(again["events"], ["denoise", "decode"])  # the last request's vectors are kept
    assert np.array_equal(again["latents"], other["latents"])
    shorter = draw(page, steps=2)
    check_progress(shorter["events"], ["download", "denoise", "decode"])
    assert np.array_equal(draw(page)["latents"], shipped["latents"])


def test_other_steps_draw_what_diffusers_draws(page: Page, bundle: Path) -> None:
    load(page)
    found = draw(page, steps=3)["latents"]
    expected = diffusers_picture(bundle, REQUEST["prompt"], (64, 96), 3, REQUEST["seed"]).latents
    errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) < 2e-3, errors


def test_the_table_draws_what_the_component_draws(page: Page) -> None:
    load(page)
    folded = draw(page)
    load(page, "unfolded.json")
    unfolded = draw(page)
    assert "download" in {event["phase"] for event in unfolded["events"]}
    errors = [relative_error(a, b) for a, b in zip(folded["latents"], unfolded["latents"], strict=True)]
    assert max(errors) < 1e-5, errors


def test_a_row_of_another_length_than_the_plan_s_is_refused(page: Page, manifest: dict[str, Any]) -> None:
    load(page, "longer.json")
    error, width = draw(page)["error"], manifest["modulation"]["width"]
    assert error["code"] == "bad-bundle"
    assert f"input modulation: expected {width + 4} elements, found {width}" in error["message"]


def test_a_cancelled_fetch_leaves_the_model_ready(page: Page) -> None:
    load(page)
    before = page.evaluate("() => client.memory()")
    cancelled = draw(page, "download", steps=3)
    assert cancelled["error"]["code"] == "aborted" and cancelled["memory"] == before
    assert draw(page)["error"] is None
    assert draw(page, steps=3)["error"] is None
