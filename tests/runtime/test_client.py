"""The whole runtime behind its client: pictures, progress, cancels, memory, and failures that recover."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from exporter.website import build_site
from tests.runtime.conftest import open_page

REQUEST = {"prompt": "a red apple", "width": 64, "height": 96, "steps": 4, "seed": 9909}
MODEL = "models/two-heads-ternary-ternary/manifest.json"
SCRIPT = """async (settings) => {
  const { createClient } = await load("client");
  globalThis.client = createClient(settings);
  globalThis.record = async (action) => {
    const events = [];
    let value = null;
    const error = await failure(async () => { value = await action((event) => events.push(event)); });
    return { events, error, value, memory: await client.memory() };
  };
  globalThis.loadModelAt = (path, cancelAt) => record((push) => watched(push, cancelAt, (options) =>
    client.load(new URL(path, location.href).href, options)));
  globalThis.draw = (request, cancelAt) => record((push) => watched(push, cancelAt, async (options) => {
    const picture = await client.generate(request, options);
    return { ...picture, pixels: toBase64(picture.pixels) };
  }));
  globalThis.watched = (push, cancelAt, call) => {
    const controller = new AbortController();
    const onProgress = (event) => { push(event); if (event.phase === cancelAt) controller.abort(); };
    return call({ signal: controller.signal, onProgress });
  };
  return true;
}"""


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}

    def __init__(self, *args: Any, asked: list[str], **kwargs: Any) -> None:
        self.asked = asked
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")  # files are rewritten within a second here
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def dist(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "dist"
    build_site([exported("two-heads-ternary")], folder)
    return folder


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Path], tuple[str, list[str]]]]:
    """`serve(folder)` is its address and the list of paths asked for so far."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(folder: Path) -> tuple[str, list[str]]:
        asked: list[str] = []
        handler = functools.partial(_Handler, directory=str(folder), asked=asked)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", asked

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="module")
def small(browser: Browser, dist: Path, local_server: Callable[[Path], str]) -> Iterator[Page]:
    """A client with its model loaded; the model is small, so all of it stays on the GPU."""
    with open_page(browser, local_server(dist)) as page:
        assert page.evaluate(SCRIPT, None)
        yield page


@pytest.fixture(scope="module")
def large(browser: Browser, dist: Path, serve) -> Iterator[tuple[Page, list[str]]]:
    """A client that takes its model for a large one, and what the server was asked for."""
    url, asked = serve(dist)
    with open_page(browser, url) as page:
        page.evaluate(SCRIPT, {"keepAllBytes": 0})
        yield page, asked


@pytest.fixture(scope="module")
def fragile(
    browser: Browser, dist: Path, serve, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Page, Path, dict[str, Any]]]:
    """A client on a copy of the site that may be damaged; that copy; its manifest."""
    folder = tmp_path_factory.mktemp("fragile") / "dist"
    shutil.copytree(dist, folder)
    for path in (folder / "shards").iterdir():  # hard links of the bundle's own files
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    with open_page(browser, serve(folder)[0]) as page:
        page.evaluate(SCRIPT, None)
        yield page, folder, json.loads((folder / MODEL).read_text("utf-8"))


def load(page: Page, path: str = MODEL, cancel_at: str | None = None) -> dict[str, Any]:
    return page.evaluate("([path, cancelAt]) => loadModelAt(path, cancelAt)", [path, cancel_at])


def draw(page: Page, request: dict[str, Any] | None = None, cancel_at: str | None = None) -> dict[str, Any]:
    return page.evaluate("([request, cancelAt]) => draw(request, cancelAt)", [request or REQUEST, cancel_at])


def ensure_loaded(page: Page) -> dict[str, Any]:
    loaded = load(page)
    assert loaded["error"] is None, loaded["error"]
    return loaded


def check_progress(events: list[dict[str, Any]], phases: list[str]) -> None:
    """Phases come one after another; each has one total, never falls back, and ends complete."""
    assert list(dict.fromkeys(event["phase"] for event in events)) == phases
    for phase in phases:
        mine = [event for event in events if event["phase"] == phase]
        assert len({event["total"] for event in mine}) == 1
        for values in ([event["done"] for event in mine], [event["fraction"] for event in mine]):
            assert values == sorted(values)
        assert mine[0]["done"] == 0
        assert mine[-1]["done"] == mine[-1]["total"] > 0
        assert mine[-1]["fraction"] == 1


def test_a_prompt_becomes_the_same_picture_twice(small: Page) -> None:
    loaded = ensure_loaded(small)
    check_progress(loaded["events"], ["compile", "download"])
    assert loaded["value"]["name"] == "two-heads-ternary"
    assert set(loaded["memory"]["byLabel"]) == {"weights:encoder", "weights:denoiser", "weights:decoder"}
    first, second = draw(small), draw(small)
    check_progress(first["events"], ["encode", "denoise", "decode"])
    check_progress(second["events"], ["denoise", "decode"])
    assert (first["value"]["width"], first["value"]["height"], first["value"]["seed"]) == (64, 96, 9909)
    assert first["value"]["pixels"] == second["value"]["pixels"]
    assert "latents" not in first["value"]
    assert first["memory"] == second["memory"] == loaded["memory"]
    other = draw(small, {**REQUEST, "seed": 9910})
    assert other["value"]["pixels"] != first["value"]["pixels"]


@pytest.mark.parametrize("phase", ["encode", "denoise", "decode"])
def test_a_cancelled_picture_leaves_the_model_ready(small: Page, phase: str) -> None:
    loaded = ensure_loaded(small)
    cancelled = draw(small, {**REQUEST, "width": 128, "height": 128, "prompt": f"cancelled at {phase}"}, phase)
    assert cancelled["error"]["code"] == "aborted"
    assert cancelled["memory"] == loaded["memory"]
    assert draw(small)["error"] is None


def test_a_request_that_is_already_cancelled_does_nothing(small: Page) -> None:
    ensure_loaded(small)
    error = small.evaluate(
        "(request) => failure(() => client.generate(request, { signal: AbortSignal.abort() }))", REQUEST
    )
    assert error["code"] == "aborted"


def test_requests_wait_for_each_other(small: Page) -> None:
    ensure_loaded(small)
    pictures = small.evaluate(
        """async (request) => {
          const seeds = [1, 2, 1];
          const made = await Promise.all(seeds.map((seed) => client.generate({ ...request, seed })));
          return made.map(({ pixels }) => toBase64(pixels));
        }""",
        REQUEST,
    )
    assert pictures[0] == pictures[2] != pictures[1]


def test_a_bad_request_is_refused_and_the_next_one_drawn(small: Page) -> None:
    ensure_loaded(small)
    refused = draw(small, {**REQUEST, "width": 17})
    assert refused["error"]["code"] == "bad-request"
    assert refused["error"]["message"].startswith("width: expected a multiple of 16")
    assert draw(small)["error"] is None


def test_a_cancelled_load_leaves_nothing_on_the_gpu(large) -> None:
    page, _ = large
    for phase in ("compile", "download"):
        cancelled = load(page, cancel_at=phase)
        assert cancelled["error"]["code"] == "aborted"
        assert cancelled["memory"]["total"] == 0
        assert draw(page)["error"]["code"] == "bad-request"
    ensure_loaded(page)
    assert draw(page)["error"] is None


def test_a_large_model_s_encoder_comes_from_the_cache_and_goes(large) -> None:
    page, asked = large
    loaded = ensure_loaded(page)
    assert set(loaded["memory"]["byLabel"]) == {"weights:denoiser", "weights:decoder"}
    asked.clear()
    first = draw(page)
    check_progress(first["events"], ["upload", "encode", "denoise", "decode"])
    assert first["memory"] == loaded["memory"]
    cancelled = draw(page, {**REQUEST, "prompt": "another"}, "upload")
    assert cancelled["error"]["code"] == "aborted"
    assert cancelled["memory"] == loaded["memory"]
    same = draw(page)
    check_progress(same["events"], ["denoise", "decode"])
    assert same["value"]["pixels"] == first["value"]["pixels"]
    assert not asked, "nothing is fetched once the model is loaded"


def tensor_shard(manifest: dict[str, Any], component: str, ending: str) -> tuple[dict[str, Any], int]:
    """Shard and offset of the first part of the first tensor whose name ends so."""
    tensors = manifest["components"][component]["tensors"]
    part = next(tensor["parts"][0] for name, tensor in tensors.items() if name.endswith(ending))
    return manifest["shards"][part["shard"]], part["offset"]


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "newer": (lambda m: m.update(format=3), "bad-bundle", "newer than this page"),
    "sampler": (lambda m: m["schedule"].update(use_karras_sigmas=True), "bad-bundle", "use_karras_sigmas"),
    "plan": (lambda m: m["components"]["decoder"].update(plan="none.plan.json"), "network", "none.plan.json"),
    "tensor": (lambda m: m["components"]["decoder"]["tensors"].popitem(), "bad-bundle", "in the manifest, found none"),
    "tokenizer": (lambda m: m["text"].update(tokenizer="none"), "network", "none/tokenizer"),
    "shard": (lambda m: m["shards"][0].update(file="shards/none.safetensors"), "network", "404"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_refused_by_code_and_place(fragile, name: str) -> None:
    page, folder, manifest = fragile
    damage, code, said = DAMAGES[name]
    damaged = json.loads(json.dumps(manifest))
    damage(damaged)
    (folder / MODEL).write_text(json.dumps(damaged), "utf-8")
    found = load(page)
    assert found["error"]["code"] == code
    assert said in found["error"]["message"]
    assert found["memory"]["total"] == 0


def test_a_missing_model_and_a_web_page_in_its_place_are_told_apart(fragile) -> None:
    page, folder, _ = fragile
    (folder / MODEL).write_text("<!doctype html>", "utf-8")
    assert load(page)["error"]["code"] == "bad-bundle"
    (folder / MODEL).unlink()
    missing = load(page)["error"]
    assert missing["code"] == "network"
    assert "404" in missing["message"]


def test_a_flipped_byte_is_found_and_the_mended_site_draws(fragile) -> None:
    page, folder, manifest = fragile
    (folder / MODEL).write_text(json.dumps(manifest), "utf-8")
    page.evaluate("async () => { await caches.delete('bitbrush-shards'); }")
    shard, offset = tensor_shard(manifest, "denoiser", ".trits")
    file = folder / shard["file"]
    good = file.read_bytes()
    file.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
    flipped = load(page)
    assert flipped["error"]["code"] == "hash-mismatch"
    assert shard["sha256"] in flipped["error"]["message"]
    assert flipped["memory"]["total"] == 0
    file.write_bytes(good)
    ensure_loaded(page)
    assert draw(page)["error"] is None


def test_weights_that_are_no_numbers_end_in_a_message_not_a_picture(fragile) -> None:
    page, folder, manifest = fragile
    broken_manifest = json.loads(json.dumps(manifest))
    shard, offset = tensor_shard(broken_manifest, "denoiser", "proj_out.weight")
    data = bytearray((folder / shard["file"]).read_bytes())
    data[offset : offset + 2] = b"\x00\x7e"  # NaN in f16
    shard["sha256"] = hashlib.sha256(data).hexdigest()
    shard["file"] = f"shards/{shard['sha256']}.safetensors"
    (folder / shard["file"]).write_bytes(data)
    (folder / MODEL).write_text(json.dumps(broken_manifest), "utf-8")
    loaded = ensure_loaded(page)
    broken = draw(page)
    assert broken["error"]["code"] == "bad-numbers"
    assert broken["error"]["message"].startswith("latents after step 1: expected numbers, found NaN")
    assert broken["memory"] == loaded["memory"]


def test_after_the_device_is_lost_a_new_one_draws_from_the_cache(browser: Browser, dist: Path, serve) -> None:
    url, asked = serve(dist)
    with open_page(browser, url) as page:
        script = """async ([path, request, phase]) => {
          const { openDevice } = await load("device");
          const { loadPipelines } = await load("pipelines");
          const { loadModel } = await load("model");
          const { generate } = await load("generate");
          const context = await openDevice(navigator.gpu);
          const pipelines = await loadPipelines(context, new URL("kernels/index.json", location.href).href);
          const onProgress = (event) => { if (event.phase === phase) context.device.destroy(); };
          const error = await failure(async () => {
            const model = await loadModel(context, new URL(path, location.href).href, { pipelines, onProgress });
            await generate(model, request, { onProgress });
          });
          return [error?.code ?? null, context.isLost];
        }"""
        assert page.evaluate(script, [MODEL, REQUEST, "denoise"]) == ["device-lost", True]
        asked.clear()
        page.evaluate(SCRIPT, None)
        ensure_loaded(page)
        assert draw(page)["error"] is None
        assert not [path for path in asked if "shards/" in path and path.endswith(".safetensors")]


def test_probe_tells_the_adapter_and_dispose_rejects_what_waits(small: Page) -> None:
    probed = small.evaluate("() => client.probe()")
    assert probed["adapter"]["vendor"]
    assert probed["limits"]["maxStorageBufferBindingSize"] >= 2**27
    codes = small.evaluate(
        """async ([path, settings]) => {
          const { createClient } = await load("client");
          const client = createClient(settings);
          const loading = failure(() => client.load(new URL(path, location.href).href));
          client.dispose();
          return [(await loading).code, (await failure(() => client.memory())).code];
        }""",
        [MODEL, {"baseline": True}],
    )
    assert codes == ["aborted", "aborted"]


def test_a_browser_without_webgpu_or_adapter_is_told_apart(calculator: Page) -> None:
    script = """async () => {
      const { openDevice } = await load("device");
      const empty = { requestAdapter: async () => null };
      return [await failure(() => openDevice(undefined)), await failure(() => openDevice(empty))];
    }"""
    errors = calculator.evaluate(script)
    assert [error["code"] for error in errors] == ["no-webgpu", "no-adapter"]
    assert all(error["hint"] for error in errors)


def test_a_worker_that_cannot_start_rejects_all_calls(calculator: Page) -> None:
    script = """async () => {
      const text = await (await fetch("js/runtime/client.js")).text();
      const errors = new URL("js/runtime/errors.js", location.href).href;
      const source = text.replace("./errors.js", errors).replace("import.meta.url", "location.href");
      const { createClient } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
      const client = createClient();
      return (await failure(() => client.probe())).code;
    }"""
    assert calculator.evaluate(script) == "network"
