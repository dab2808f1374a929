"""Trits reach the GPU as the codes that they store, wherever shards cut them, through one small buffer."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from exporter.publish import EXPAND_TRITS
from exporter.trits import pack_trits
from tests.runtime.conftest import copy_with_kernels, open_page

STAGING = 4 * 2**20 + 16  # bytes: pieces of trits, and how many words they become

SCRIPT = """async ([tensors, shards, bufferBytes, cancel]) => {
  const { openDevice } = await load("device");
  const { loadPipelines } = await load("pipelines");
  const { loadWeights } = await load("weights");
  const context = await openDevice(navigator.gpu, { baseline: true });
  const pipelines = await loadPipelines(context, new URL("kernels/index.json", location.href).href);
  let peak = 0;
  const create = context.createBuffer.bind(context);
  context.createBuffer = (label, size, usage) => {
    const buffer = create(label, size, usage | GPUBufferUsage.COPY_SRC);
    peak = Math.max(peak, context.memory().total);
    return buffer;
  };
  const read = async ({ buffer, offset, size }) => {
    const copy = context.device.createBuffer({ size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    const encoder = context.device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, offset, copy, 0, size);
    context.device.queue.submit([encoder.finish()]);
    await copy.mapAsync(GPUMapMode.READ);
    return toBase64(new Uint8Array(copy.getMappedRange()));
  };
  const data = shards.map(fromBase64);
  const controller = new AbortController();
  const get = async (index) => {
    if (cancel && index === 1) controller.abort();
    return data[index];
  };
  const found = {};
  let bytes = 0;
  const error = await failure(async () => {
    const options = { label: "weights", pipelines, bufferBytes, signal: controller.signal };
    const weights = await loadWeights(context, { graph: "", plan: "", tensors }, { get }, options);
    bytes = weights.bytes;
    for (const [name, place] of weights.tensors) found[name] = await read(place);
  });
  const left = context.memory();
  context.close();
  return { found, peak, bytes, left, error };
}"""


@pytest.fixture(scope="module")
def gpu(
    browser: Browser, site_folder: Path, local_server: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    folder = copy_with_kernels(site_folder, tmp_path_factory.mktemp("trits") / "site", {"dispatches": [EXPAND_TRITS]})
    with open_page(browser, local_server(folder)) as page:
        yield page


def codes(rows: int, words: int, seed: int = 0) -> np.ndarray:
    """u32[rows, words] of 2-bit codes 0, 1, 2."""
    chosen = np.random.default_rng(seed + rows).integers(0, 3, (rows, words, 16), np.uint32)
    return np.bitwise_or.reduce(chosen << np.arange(0, 32, 2, dtype=np.uint32), axis=2)


def upload(
    page: Page,
    tensors: dict[str, np.ndarray],
    cuts: dict[str, list[int]],
    buffer_bytes: int = 2**28,
    cancel: bool = False,
    store: Callable[[np.ndarray, str], np.ndarray] = pack_trits,
) -> dict[str, Any]:
    """Load u32 codes as trits and other arrays as they are, cut before the given rows, over three shards."""
    shards = [b"head", b"two", b"heads"]  # so that nothing is aligned
    records: dict[str, Any] = {}
    turn = 0
    for name, array in tensors.items():
        record: dict[str, Any] = {"dtype": "F16", "shape": list(array.shape), "parts": []}
        stored = array
        if array.dtype == np.uint32:
            stored = store(array, name)
            expands = {"name": f"{name}.codes", "shape": list(array.shape)}
            record |= {"dtype": "U8", "shape": list(stored.shape), "expands_to": expands}
        for piece in np.split(stored, cuts.get(name, [])):
            at = turn % len(shards)
            record["parts"].append({"shard": at, "offset": len(shards[at]), "bytes": piece.nbytes})
            shards[at] += piece.tobytes()
            turn += 1
        records[name] = record
    encoded = [base64.b64encode(shard).decode() for shard in shards]
    return page.evaluate(SCRIPT, [records, encoded, buffer_bytes, cancel])


TENSORS = {
    "one-row": codes(1, 8),
    "odd": np.arange(7, dtype=np.float16),
    "whole": codes(5, 24),
    "cut": codes(37, 40),
    "last": codes(13, 72),
}
CUTS = {"cut": [1, 14, 15, 200, 295], "last": [187]}


@pytest.mark.parametrize("buffer_bytes", [1, 9000, 2**28])
def test_codes_are_the_stored_ones_whatever_the_cuts(gpu: Page, buffer_bytes: int) -> None:
    result = upload(gpu, TENSORS, CUTS, buffer_bytes)
    assert result["error"] is None
    expected = {name if array.dtype == np.float16 else f"{name}.codes": array for name, array in TENSORS.items()}
    assert list(result["found"]) == list(expected)
    for name, array in expected.items():
        assert base64.b64decode(result["found"][name])[: array.nbytes] == array.tobytes(), name


def test_a_load_takes_the_codes_and_one_small_buffer(gpu: Page) -> None:
    large = codes(15_000, 192)  # 9.2 MB of trits: two parts, of two pieces each
    result = upload(gpu, {"large": large}, {"large": [300_001]}, 2**25)
    assert result["error"] is None
    assert base64.b64decode(result["found"]["large.codes"]) == large.tobytes()
    assert result["bytes"] == large.nbytes
    assert result["peak"] == result["bytes"] + STAGING
    assert result["left"]["byLabel"] == {"weights": result["bytes"]}


def test_a_cancelled_load_leaves_nothing(gpu: Page) -> None:
    result = upload(gpu, TENSORS, CUTS, cancel=True)
    assert result["error"]["code"] == "aborted"
    assert result["peak"] > 0
    assert result["left"]["total"] == 0


def test_bytes_that_are_no_trits_spoil_their_own_codes_alone(gpu: Page) -> None:
    def damaged(array: np.ndarray, name: str) -> np.ndarray:
        stored = pack_trits(array, name)
        stored[1, 3] = 255
        return stored

    result = upload(gpu, {"whole": TENSORS["whole"]}, {}, store=damaged)
    assert result["error"] is None
    found = np.frombuffer(base64.b64decode(result["found"]["whole.codes"]), np.uint32)
    spoilt = np.flatnonzero(found != TENSORS["whole"].reshape(-1))
    assert set(spoilt) <= {5, 6}  # the second unit's codes 15 to 19 lie in its first two words
