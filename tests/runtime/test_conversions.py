"""Operands that a variant takes as int8 or f16: converted once, before the first dispatch that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from exporter.lower.operators.matmul import NO_EPILOGUE
from tests.kernels.emulated import ATTENTION, attention_text
from tests.runtime.conftest import array, copy_with_kernels, open_page
from tests.runtime.test_executor import text
from webgpu_kernels.families.attention import MatrixAttention
from webgpu_kernels.weights import dense, random_weights

K, OUT = 128, 12
SHAPES = {"A": ("ternary", K, K), "B": ("binary", OUT, K), "C": ("int8", OUT, K)}


def _linear(x: int, y: int, name: str) -> dict[str, Any]:
    kind, n, k = SHAPES[name]
    tensors = {part: f"{name}.{part}" for part in ("codes", "scales", *(("offsets",) if kind == "int8" else ()))}
    return {
        "kernel": "linear",
        "options": {"weights": kind, "bias": False, "aligned": True, "epilogue": "none"},
        "constants": {"N": n, "K": k, "GROUP": 128},
        "uniforms": {"rows": "rows", "x_offset": 0, "x_stride": k, **NO_EPILOGUE, "y_offset": 0, "y_stride": n},
        "bindings": {"x": x, "y": y, **tensors},
    }


# h = x·Aᵀ, y = x·Bᵀ, z = h·Cᵀ
PLAN: dict[str, Any] = {
    "format": 3, "component": "denoiser", "symbols": ["rows"], "arenas": 1, "loops": [],
    "values": [
        {"name": "x", "role": "input", "dtype": "f32", "elements": ["mul", "rows", K]},
        {"name": "h", "role": "temporary", "dtype": "f32", "elements": ["mul", "rows", K], "arena": 0,
         "first": 0, "last": 2},
        {"name": "y", "role": "output", "dtype": "f32", "elements": ["mul", "rows", OUT]},
        {"name": "z", "role": "output", "dtype": "f32", "elements": ["mul", "rows", OUT]},
    ],
    "dispatches": [_linear(0, 1, "A"), _linear(0, 2, "B"), _linear(1, 3, "C")],
}  # fmt: skip

SCRIPT = """async ([plan, tensors, data, rows, x, variant, longest]) => {
  const { openDevice } = await load("device");
  const { loadPipelines } = await load("pipelines");
  const { loadWeights } = await load("weights");
  const { parsePlan } = await load("plan");
  const { Pacer } = await load("executor");
  const { prepare } = await load("prepare");
  const { planBytes } = await load("layout");
  const context = await openDevice(navigator.gpu);
  const pipelines = await loadPipelines(context, new URL("kernels/index.json", location.href).href, variant);
  const shard = fromBase64(data);
  let offset = 0;
  const records = Object.fromEntries(tensors.map(([name, bytes, shape, dtype]) => {
    offset += bytes;
    return [name, { dtype, shape, parts: [{ shard: 0, offset: offset - bytes, bytes }] }];
  }));
  const weights = await loadWeights(context, { graph: "", plan: "", tensors: records }, { get: async () => shard },
    { label: "weights" });
  const held = context.memory().total;
  const parsed = parsePlan(plan, "plan");
  const pacer = Object.assign(new Pacer(), { leastPart: longest });
  if (longest === 1) pacer.rate = 0;
  const inputs = { symbols: { rows }, tensors: weights.tensors, pipelines, pacer };
  const executor = await prepare(context, parsed, inputs);
  const bytes = { counted: planBytes(parsed, { rows }, (dispatch) => pipelines.entryOf(dispatch, "denoiser")),
    taken: context.memory().total - held };
  executor.write("x", new Float32Array(fromBase64(x).buffer));
  const found = [];
  for (let run = 0; run < 2; run += 1) {
    await executor.run();
    for (const name of ["y", "z"]) found.push(toBase64(new Float32Array(await executor.read(name))));
  }
  return { steps: executor.steps.length, bytes, found };
}"""


def _records(inputs: dict[str, np.ndarray], name: str) -> list[list[Any]]:
    """Name, bytes, shape and dtype of the tensors of a matrix."""
    rows = SHAPES[name][1]
    types = {part: ("U32", 4) if part == "codes" else ("F16", 2) for part in inputs}
    return [
        [f"{name}.{part}", values.nbytes, [rows, values.nbytes // rows // types[part][1]], types[part][0]]
        for part, values in inputs.items()
    ]


def _check_steps_and_bytes(found: dict[str, Any], steps: int, readback: int, more_parts: int) -> None:
    """`readback` are the bytes that reading an output takes; planBytes counts them, and no parts beyond the first."""
    assert found["steps"] == steps
    assert found["bytes"]["counted"] == found["bytes"]["taken"] + readback - 256 * more_parts


# Whole dispatches, and three parts of each.
@pytest.mark.parametrize(
    ("variant", "rows", "parts", "steps", "bound"),
    [("f32", 5, 1, 3, 1e-5), ("int8_rows", 5, 1, 5, 2e-2), ("int8_rows", 261, 3, 11, 2e-2)],
)
def test_products_convert_what_they_read_once(
    variant: str,
    rows: int,
    parts: int,
    steps: int,
    bound: float,
    browser: Browser,
    site_folder: Path,
    local_server: Callable[[Path], str],
    tmp_path: Path,
) -> None:
    folder = copy_with_kernels(site_folder, tmp_path / "site", PLAN)
    weights = {name: random_weights(*shape, group=128, seed=n) for n, (name, shape) in enumerate(SHAPES.items())}
    matrix = {name: dense(kind, weights[name], n, k, 128) for name, (kind, n, k) in SHAPES.items()}
    x = np.random.default_rng(7).standard_normal((rows, K)).astype(np.float32)
    tensors = [record for name, inputs in weights.items() for record in _records(inputs, name)]
    data = np.concatenate([values for inputs in weights.values() for values in inputs.values()])
    with open_page(browser, local_server(folder)) as page:
        found = page.evaluate(SCRIPT, [PLAN, tensors, text(data), rows, text(x), variant, 1 if parts > 1 else 1e30])
    _check_steps_and_bytes(found, steps, readback=4 * rows * OUT, more_parts=3 * (parts - 1))
    products = [x @ matrix["B"].T, x @ matrix["A"].T @ matrix["C"].T]
    for data, wanted in zip(found["found"], products * 2, strict=True):
        assert np.linalg.norm(array(data) - wanted.reshape(-1)) <= bound * np.linalg.norm(wanted)


HEADS = 3


def _attention(y: int, size: int) -> dict[str, Any]:
    """Of rows of q, k and v side by side."""
    strides = {"stride": 3 * HEADS * size, "head_stride": size}
    views = {f"{name}_{key}": value for name in "qkv" for key, value in strides.items()}
    offsets = {"q_offset": 0, "k_offset": HEADS * size, "v_offset": 2 * HEADS * size, "y_offset": 0}
    return {
        "kernel": "attention",
        "options": {"mask": "none"},
        "constants": {"HEADS": HEADS, "KV_HEADS": HEADS, "HEAD_SIZE": size, "SCALE": size**-0.5},
        "uniforms": {"q_tokens": "rows", "kv_tokens": "rows", "y_stride": HEADS * size, "y_head_stride": size}
        | views
        | offsets,
        "bindings": {"q": 0, "k": 0, "v": 0, "y": y},
    }


def _with_emulated_matrices(folder: Path) -> None:
    """The kernel index with matrix_f16 as every adapter can run it."""
    index = json.loads((folder / "index.json").read_text("utf-8"))
    (entry,) = [e for e in index if e["kernel"] == "attention" and e["variant"] == "matrix_f16"]
    numbers = MatrixAttention(**ATTENTION)
    entry |= {
        "features": [],
        "limits": {},
        "matrix": None,
        "fixed": {"HEAD_SIZE": numbers.channels},
        "groups": numbers.groups(),
    }
    (folder / entry["file"]).write_text(attention_text(), "utf-8")
    (folder / "index.json").write_text(json.dumps(index), "utf-8")


# Conversions of k and v, for int8 of q, too, and two dispatches; of more rows than 128 three parts of each.
@pytest.mark.parametrize(
    ("variant", "size", "rows", "steps", "bound"),
    [
        ("matrix_f16", ATTENTION["channels"], 37, 4, 4e-3),
        ("matrix_f16", ATTENTION["channels"], 261, 8, 4e-3),
        ("int8", 128, 37, 5, 2e-2),
        ("int8", 128, 261, 9, 2e-2),
    ],
)
def test_attention_converts_its_operands_once_and_takes_its_queries_in_parts(
    variant: str,
    size: int,
    rows: int,
    steps: int,
    bound: float,
    browser: Browser,
    site_folder: Path,
    local_server: Callable[[Path], str],
    tmp_path: Path,
) -> None:
    outputs = [
        {"name": name, "role": "output", "dtype": "f32", "elements": ["mul", "rows", HEADS * size]} for name in "yz"
    ]
    values = [{"name": "x", "role": "input", "dtype": "f32", "elements": ["mul", "rows", 3 * HEADS * size]}, *outputs]
    plan = {**PLAN, "arenas": 0, "values": values, "dispatches": [_attention(1, size), _attention(2, size)]}
    folder = copy_with_kernels(site_folder, tmp_path / "site", plan)
    _with_emulated_matrices(folder / "kernels")
    x = np.random.default_rng(7).standard_normal((rows, 3, HEADS, size)).astype(np.float32)
    with open_page(browser, local_server(folder)) as page:
        arguments = [plan, [], "", rows, text(x), variant, 1 if rows > 128 else 1e30]
        found = page.evaluate(SCRIPT, arguments)
    _check_steps_and_bytes(found, steps, readback=4 * rows * HEADS * size, more_parts=2 * (-(-rows // 128) - 1))
    q, k, v = x.astype(np.float64).transpose(1, 2, 0, 3)
    weights = np.exp(q @ k.transpose(0, 2, 1) * size**-0.5)
    wanted = (weights / weights.sum(axis=2, keepdims=True) @ v).transpose(1, 0, 2)
    for data in found["found"]:
        assert np.linalg.norm(array(data) - wanted.reshape(-1)) <= bound * np.linalg.norm(wanted)
