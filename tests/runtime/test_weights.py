"""Weights reach their places in GPU buffers byte for byte, however a tensor is cut into parts."""

import base64
from typing import Any

import numpy as np
from playwright.sync_api import Page

# A stand-in for the device: buffers are arrays, and writes obey WebGPU's rule of whole words.
SCRIPT = """async ([component, shards, bufferBytes, bindingBytes]) => {
  const { loadWeights } = await load("weights");
  const queue = {
    writeBuffer(buffer, offset, data, start = 0, count = data.length - start) {
      const fits = offset % 4 === 0 && count % 4 === 0 && offset + count <= buffer.bytes.length;
      if (!fits) throw new Error(`bad write ${offset} ${count}`);
      buffer.bytes.set(data.subarray(start, start + count), offset);
      globalThis.largest = Math.max(globalThis.largest ?? 0, count);
    },
    onSubmittedWorkDone: async () => {},
  };
  const live = new Set();
  const context = {
    device: { queue, limits: { maxBufferSize: 2 ** 28, maxStorageBufferBindingSize: 2 ** 27 } },
    scoped: async (what, action) => action(),
    guard: (promise) => promise,
    createBuffer: (label, size) => {
      const buffer = { bytes: new Uint8Array(size).fill(255) };
      live.add(buffer);
      return buffer;
    },
    destroyBuffer: (buffer) => live.delete(buffer),
  };
  const data = shards.map(fromBase64);
  const asked = [];
  const source = { get: async (index) => { asked.push(index); return data[index]; } };
  const weights = await loadWeights(context, component, source, { label: "weights", bufferBytes, bindingBytes });
  const tensors = {};
  for (const [name, { buffer, offset, size }] of weights.tensors) {
    tensors[name] = { offset, size, data: toBase64(buffer.bytes.subarray(offset, offset + size)) };
  }
  const buffers = live.size;
  weights.destroy();
  return { tensors, buffers, asked, left: live.size, largest: globalThis.largest };
}"""


def load(
    page: Page, tensors: dict[str, bytes], cuts: dict[str, list[int]], buffer_bytes: int, binding_bytes: int = 2**27
) -> dict[str, Any]:
    """Put tensors, cut at the given byte offsets, alternately into three shards, and load them."""
    shards = [b"head", b"headhead", b"head2"]
    records: dict[str, Any] = {}
    turn = 0
    for name, data in tensors.items():
        edges = [0, *cuts.get(name, []), len(data)]
        parts = []
        for begin, end in zip(edges, edges[1:], strict=False):
            parts.append({"shard": turn % 3, "offset": len(shards[turn % 3]), "bytes": end - begin})
            shards[turn % 3] += data[begin:end]
            turn += 1
        records[name] = {"dtype": "F16", "shape": [len(data) // 2], "parts": parts}
    encoded = [base64.b64encode(shard).decode() for shard in shards]
    return page.evaluate(SCRIPT, [{"graph": "", "plan": "", "tensors": records}, encoded, buffer_bytes, binding_bytes])


def test_tensors_arrive_whole_whatever_the_cuts(calculator: Page) -> None:
    chance = np.random.default_rng(4)
    tensors = {
        f"t{i}": chance.integers(0, 256, 2 * n, dtype=np.uint8).tobytes() for i, n in enumerate([1, 3, 8, 129, 2000, 5])
    }
    cuts = {"t1": [2, 4], "t2": [6], "t3": [2, 10, 130, 132, 134], "t4": [1002, 3998]}
    for buffer_bytes in (1, 700, 2**20):
        found = load(calculator, tensors, cuts, buffer_bytes)
        for name, data in tensors.items():
            place = found["tensors"][name]
            assert place["offset"] % 256 == 0
            assert place["size"] % 16 == 0
            assert base64.b64decode(place["data"])[: len(data)] == data, name
        assert found["buffers"] == {1: 6, 700: 4, 2**20: 1}[buffer_bytes]
        assert found["asked"] == [0, 1, 2]
        assert found["left"] == 0


def test_large_tensors_are_written_in_small_pieces(calculator: Page) -> None:
    data = np.arange(9 * 2**18, dtype=np.uint32).tobytes()  # 9 MiB
    found = load(calculator, {"large": data}, {"large": [2**22 + 2]}, 2**28)
    assert base64.b64decode(found["tensors"]["large"]["data"]) == data
    assert found["largest"] <= 4 * 2**20


def test_tensors_beyond_a_binding_arrive_in_pieces_of_whole_rows(calculator: Page) -> None:
    chance = np.random.default_rng(7)
    tensors = {f"t{i}": chance.integers(0, 256, 2 * n, dtype=np.uint8).tobytes() for i, n in enumerate([5, 1000, 300])}
    found = load(calculator, tensors, {"t1": [14, 600, 1022]}, 700, binding_bytes=1024)
    steps = {"t0": [0, 5], "t1": [0, 512, 1000], "t2": [0, 300]}  # rows of 2 bytes, cut at multiples of 128
    expected = {
        f"{name}@{begin}" if begin else name: tensors[name][2 * begin : 2 * end]
        for name, edges in steps.items()
        for begin, end in zip(edges, edges[1:], strict=False)
    }
    assert set(found["tensors"]) == set(expected)
    for name, data in expected.items():
        assert base64.b64decode(found["tensors"][name]["data"])[: len(data)] == data, name
    assert found["left"] == 0
