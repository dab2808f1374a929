"""The decoder on a real adapter: the same picture however small its bands, in less memory."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from playwright.sync_api import Browser, Page

from exporter.website import build_site
from tests.reference import relative_error
from tests.runtime.conftest import array, open_page

ROWS, COLUMNS = 5, 7
WHOLE = 2**40

SETUP = """async (manifestUrl) => {
  const { openDevice } = await load("device");
  const { loadPipelines } = await load("pipelines");
  const { loadWeights } = await load("weights");
  const { parseManifest } = await load("manifest");
  const { parsePlan } = await load("plan");
  const { createShardSource } = await load("shards");
  const url = new URL(manifestUrl, location.href).href;
  const json = async (address) => (await fetch(address)).json();
  const manifest = parseManifest(await json(url), url);
  const { decoder } = manifest.components;
  const shards = new URL(manifest.shards_url, url);
  const source = createShardSource(manifest.shards, (shard) => new URL(shard.file, shards).href);
  globalThis.context = await openDevice(navigator.gpu, { baseline: true });
  globalThis.pipelines = await loadPipelines(context, new URL("kernels/index.json", location.href).href);
  globalThis.plan = parsePlan(await json(new URL(decoder.plan, url).href), "plan");
  globalThis.weights = await loadWeights(context, decoder, source, { label: "weights" });
}"""

DECODE = """async ([latents, symbols]) => {
  const { prepare } = await load("prepare");
  const { Pacer } = await load("executor");
  const { tensors } = weights;
  const executor = await prepare(context, plan, { symbols, tensors, pipelines, pacer: new Pacer() });
  executor.write("latents", new Float32Array(fromBase64(latents).buffer));
  await executor.run();
  const image = toBase64(new Float32Array(await executor.read("image")));
  const found = { image, steps: executor.steps.length, arenas: context.memory().byLabel["arena:decoder"] };
  executor.destroy();
  return found;
}"""


@pytest.fixture(scope="module")
def decoder(
    exported: Callable[..., Any], browser: Browser, local_server: Callable, tmp_path_factory: pytest.TempPathFactory
):
    """A page with the decoder of a small model, latents, and the picture that onnxruntime makes of them."""
    bundle = exported("deep")
    latents = np.random.default_rng(0).standard_normal((1, ROWS, COLUMNS, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(bundle / "decoder.onnx", providers=["CPUExecutionProvider"])
    (image,) = session.run(None, {"latents": latents})
    site = tmp_path_factory.mktemp("site") / "dist"
    (entry,) = build_site([bundle], site)
    with open_page(browser, local_server(site)) as page:
        page.evaluate(SETUP, f"models/{entry['manifest']}")
        yield page, latents, image[0].transpose(1, 2, 0)


def decode(page: Page, latents: np.ndarray, **symbols: int) -> dict[str, Any]:
    text = base64.b64encode(latents.tobytes()).decode()
    return page.evaluate(DECODE, [text, {"rows": ROWS, "columns": COLUMNS, **symbols}])


def test_bands_give_the_same_picture_in_less_memory(decoder) -> None:
    page, latents, image = decoder
    usual = decode(page, latents)
    whole = decode(page, latents, band_elements=WHOLE, held_elements=WHOLE)
    assert whole["image"] == usual["image"]
    assert relative_error(array(whole["image"]), image) < 1e-5
    for held in (1, WHOLE):
        banded = decode(page, latents, band_elements=20_000, held_elements=held)
        assert relative_error(array(banded["image"]), image) < 1e-5
        assert banded["steps"] > whole["steps"]
        assert held == WHOLE or banded["arenas"] < 0.8 * whole["arenas"]


def test_a_band_of_one_row_suffices(decoder) -> None:
    page, latents, image = decoder
    found = decode(page, latents, band_elements=1, held_elements=1)
    assert relative_error(array(found["image"]), image) < 1e-5
