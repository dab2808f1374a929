"""GPU bytes: what the site says before the download is what the runtime counts; budgets and full cards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from exporter.gpu_memory import weight_bytes
from exporter.website import build_site
from tests.runtime.conftest import open_page

SIZE = "64x64"
DOTS = "packed_4x8_integer_dot_product"
MODEL = "models/two-heads-ternary-ternary"
REQUEST = {"prompt": "a red apple", "width": 64, "height": 64, "steps": 1, "seed": 9909}

SCRIPT = """async ([model, request, settings, memoryBudget]) => {
  const { createClient } = await load("client");
  globalThis.clients ??= {}; // kept, as each compiles its kernels anew
  const client = globalThis.clients[JSON.stringify(settings)] ??= createClient(settings ?? undefined);
  const phases = [];
  const onProgress = ({ phase }) => { if (phases.at(-1) !== phase) phases.push(phase); };
  const url = new URL(`${model}/manifest.json`, location.href).href;
  const pictures = [];
  const kept = [];
  const error = await failure(async () => {
    await client.load(url, { onProgress, memoryBudget: memoryBudget ?? undefined });
    for (const prompt of [request.prompt, "another"]) {
      kept.push(Object.keys((await client.memory()).byLabel).sort());
      phases.push("|");
      const picture = await client.generate({ ...request, prompt }, { onProgress });
      pictures.push({ ...picture, pixels: toBase64(picture.pixels) });
    }
  });
  kept.push(Object.keys((await client.memory()).byLabel).sort());
  return { pictures, kept, error, phases: phases.join(" ") };
}"""


@pytest.fixture(scope="module")
def dist(exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "dist"
    build_site([exported("two-heads-ternary")], folder)
    return folder


@pytest.fixture(scope="module")
def page(browser: Browser, dist: Path, local_server) -> Iterator[Page]:
    with open_page(browser, local_server(dist)) as opened:
        yield opened


@pytest.fixture(scope="module")
def manifest(dist: Path) -> dict[str, Any]:
    return json.loads((dist / MODEL / "manifest.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def usual(page: Page) -> dict[str, Any]:
    return draw(page)


def draw(page: Page, settings: dict[str, Any] | None = None, budget: int | None = None) -> dict[str, Any]:
    return page.evaluate(SCRIPT, [MODEL, REQUEST, settings, budget])


def weights(manifest: dict[str, Any]) -> dict[str, int]:
    return {name: weight_bytes(component) for name, component in manifest["components"].items()}


def pixels(found: dict[str, Any]) -> list[str]:
    assert found["error"] is None, found["error"]
    return [picture["pixels"] for picture in found["pictures"]]


def test_the_runtime_takes_the_bytes_that_the_manifest_says(usual, manifest, dist) -> None:
    assert set(manifest["memory"]) == {"64x64", "96x64", "64x96", "96x96", "128x128"}
    assert [picture["peak_bytes"] for picture in usual["pictures"]] == [manifest["memory"][SIZE]] * 2
    (entry,) = json.loads((dist / "models" / "index.json").read_text("utf-8"))
    assert entry["memory"] == manifest["memory"]


def test_scratch_for_converted_operands_is_what_the_manifest_says(page, usual, manifest, dist) -> None:
    found = draw(page, {"forceVariant": "int8_rows"})
    assert found["error"] is None
    (scratch,) = (one["bytes"][SIZE] for one in manifest["converted"] if one["needs"] == [DOTS])
    told = manifest["memory"][SIZE]
    assert [picture["peak_bytes"] for picture in found["pictures"]] == [
        {**told, "denoise": told["denoise"] + scratch}
    ] * 2
    most = max(one["bytes"][SIZE] for one in manifest["converted"])
    assert scratch < most  # f16 takes 2 bytes, int8 little more than 1
    (entry,) = json.loads((dist / "models" / "index.json").read_text("utf-8"))
    assert entry["converted"] == manifest["converted"]


def test_a_large_model_denoises_and_decodes_without_its_encoder(page, usual, manifest) -> None:
    found = draw(page, {"keepAllBytes": 0})
    assert pixels(found) == pixels(usual)
    told = manifest["memory"][SIZE]
    expected = {**told, **{name: told[name] - weights(manifest)["encoder"] for name in ("denoise", "decode")}}
    assert [picture["peak_bytes"] for picture in found["pictures"]] == [expected] * 2


def test_within_a_budget_the_denoiser_goes_before_decoding_and_comes_back(page, usual, manifest) -> None:
    bytes_, told = weights(manifest), manifest["memory"][SIZE]
    # Each phase alone with the decoder's weights just fits; decoding with another component's does not.
    alone = {"encode": told["encode"] - bytes_["denoiser"], "denoise": told["denoise"] - bytes_["encoder"]}
    budget = max(*alone.values(), told["decode"] - bytes_["denoiser"] - bytes_["encoder"])
    found = draw(page, {"keepAllBytes": 0}, budget)
    assert pixels(found) == pixels(usual)
    for picture in found["pictures"]:
        assert max(picture["peak_bytes"].values()) <= budget
    assert found["phases"].endswith("| upload encode upload denoise decode")
    assert all("weights:encoder" not in kept for kept in found["kept"][1:])


def test_a_budget_that_nothing_fits_in_is_exceeded_by_one_component_at_a_time(page, usual, manifest) -> None:
    found = draw(page, None, 1)
    assert pixels(found) == pixels(usual)
    assert found["kept"] == [[], ["weights:decoder"], ["weights:decoder"]]
    told, bytes_ = manifest["memory"][SIZE], weights(manifest)
    others = {"encode": ("denoiser", "decoder"), "denoise": ("encoder", "decoder"), "decode": ("encoder", "denoiser")}
    expected = {phase: told[phase] - sum(bytes_[name] for name in names) for phase, names in others.items()}
    expected["denoise"] = max(expected["denoise"], bytes_["encoder"])  # there until the denoiser's are asked for
    assert found["pictures"][0]["peak_bytes"] == expected


FULL_CARDS = """async ([model, request, capacities]) => {
  const { openDevice } = await load("device");
  const { BitbrushError } = await load("errors");
  const { loadPipelines } = await load("pipelines");
  const { loadModel } = await load("model");
  const { generate } = await load("generate");
  const context = await openDevice(navigator.gpu);
  const pipelines = await loadPipelines(context, new URL("kernels/index.json", location.href).href);
  const create = context.createBuffer.bind(context);
  let [refused, capacity] = [[], 0];
  context.createBuffer = (label, size, usage) => {
    if (context.liveBytes + size <= capacity) return create(label, size, usage);
    refused.push(label);
    throw new BitbrushError("out-of-memory", `${label}: the card of this test holds ${capacity} bytes`);
  };
  const onProgress = () => {};
  const found = [];
  for (capacity of capacities) {
    refused = [];
    let picture = null;
    let loaded = null;
    const error = await failure(async () => {
      const url = new URL(`${model}/manifest.json`, location.href).href;
      loaded = await loadModel(context, url, { pipelines, onProgress, keepAllBytes: 0 });
      picture = await generate(loaded, request, { onProgress });
    });
    const { byLabel } = context.memory();
    loaded?.dispose();
    found.push({ refused, error, pixels: picture && toBase64(picture.pixels), peaks: picture?.peak_bytes, byLabel });
  }
  context.close();
  return found;
}"""


def test_a_card_too_full_for_more_frees_what_is_not_at_work(page, usual, manifest) -> None:
    bytes_, told = weights(manifest), manifest["memory"][SIZE]
    decoding = told["decode"] - bytes_["encoder"] - bytes_["denoiser"]
    found, less = page.evaluate(FULL_CARDS, [MODEL, REQUEST, [decoding, decoding - 1000]])
    assert found["error"] is None
    assert any(label.endswith(":decoder") for label in found["refused"])
    assert set(found["byLabel"]) == {"weights:decoder"}
    assert found["peaks"]["decode"] == decoding
    assert found["pixels"] == pixels(usual)[0]
    assert less["error"]["code"] == "out-of-memory"
    assert set(less["byLabel"]) == {"weights:decoder"}


def test_tensors_larger_than_a_binding_are_computed_with_in_pieces(page, usual, manifest) -> None:
    tensors = {name: record for c in manifest["components"].values() for name, record in c["tensors"].items()}
    size = lambda record: sum(part["bytes"] for part in record["parts"])  # noqa: E731
    limit = 98304
    assert size(tensors["embed_tokens.weight"]) > limit and size(tensors["context_embedder.weight"]) == limit
    found = draw(page, {"bindingBytes": limit})
    assert pixels(found) == pixels(usual)


def test_a_tensor_whose_kernel_takes_it_whole_is_refused_before_the_download(page) -> None:
    found = draw(page, {"bindingBytes": 18000})
    assert found["error"]["code"] == "limit-too-low"
    assert "has " in found["error"]["message"] and "18000" in found["error"]["message"]
    assert found["phases"] == ""
