"""Dispatches too long for a slow adapter run in parts that compute the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from tests.runtime.conftest import array, copy_with_kernels, open_page
from tests.runtime.test_executor import SETUP, linear, text

ROWS, SIZE = 300, 64  # three parts, the last one not whole


def attention() -> dict[str, Any]:
    places = {f"{name}_{part}": value for name in "qkvy" for part, value in PLACE.items()}
    return {
        "kernel": "attention",
        "options": {"mask": "none"},
        "constants": {"HEADS": 1, "KV_HEADS": 1, "HEAD_SIZE": SIZE, "SCALE": SIZE**-0.5},
        "uniforms": {"q_tokens": "rows", "kv_tokens": "rows", **places},
        "bindings": {"q": 1, "k": 0, "v": 0, "y": 2},
        "source": "attention of the test",
    }


PLACE = {"offset": 0, "stride": SIZE, "head_stride": SIZE}
ELEMENTS = ["mul", "rows", SIZE]
# y = attention of x·Aᵀ to x
PLAN: dict[str, Any] = {
    "format": 3, "component": "denoiser", "symbols": ["rows"], "arenas": 1, "loops": [],
    "values": [
        {"name": "x", "role": "input", "dtype": "f32", "elements": ELEMENTS},
        {"name": "q", "role": "temporary", "dtype": "f32", "elements": ELEMENTS, "arena": 0, "first": 0, "last": 1},
        {"name": "y", "role": "output", "dtype": "f32", "elements": ELEMENTS},
    ],
    "dispatches": [linear(0, 1, SIZE, SIZE, "A"), attention()],
}  # fmt: skip

RUN = """async ([plan, arrays, rows, x, longest]) => {
  const weights = await weightsOf(arrays);
  Object.assign(pacer, { rate: longest, leastPart: 1 });
  const executor = await prepared(plan, weights, rows);
  executor.write("x", new Float32Array(fromBase64(x).buffer));
  const groups = executor.steps.map((step) => step.groups);
  await executor.run();
  const y = toBase64(new Float32Array(await executor.read("y")));
  executor.destroy();
  weights.destroy();
  return { y, groups };
}"""


@pytest.fixture(scope="module")
def kernel_site(
    site_folder: Path, local_server: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    return local_server(copy_with_kernels(site_folder, tmp_path_factory.mktemp("kernels") / "site", PLAN))


def test_parts_of_long_dispatches_compute_what_the_whole_does(browser: Browser, kernel_site: str) -> None:
    chance = np.random.default_rng(8)
    a, x = (chance.standard_normal(shape).astype(np.float32) for shape in ((SIZE, SIZE), (ROWS, SIZE)))
    with open_page(browser, kernel_site) as page:
        page.evaluate(SETUP, "baseline")
        arguments = [PLAN, [["A", text(a), list(a.shape)]], ROWS, text(x)]
        whole = page.evaluate(RUN, [*arguments, 1e9])
        parts = page.evaluate(RUN, [*arguments, 1e-3])
    assert len(whole["groups"]) == 2
    assert len(parts["groups"]) == 6
    assert parts["y"] == whole["y"]
    scores = x.astype(np.float64) @ a.T.astype(np.float64) @ x.T * SIZE**-0.5
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = scores / scores.sum(axis=1, keepdims=True) @ x
    assert np.linalg.norm(array(parts["y"]).reshape(ROWS, SIZE) - expected) / np.linalg.norm(expected) < 1e-5


CASES = """async ([dispatch, sizes, longest]) => (await load("slices")).partsOf(dispatch, sizes, longest)"""


def test_parts_move_offsets_by_rows_and_stay_whole_tiles(browser: Browser, kernel_site: str) -> None:
    sizes = {"rows": 1000, "N": 512, "K": 512, "x_offset": 64, "x_stride": 600, "y_offset": 8, "y_stride": 520}
    sizes |= {"residual_offset": 16, "residual_stride": 530, "gate_offset": 24}
    with open_page(browser, kernel_site) as page:
        found = page.evaluate(CASES, [{"kernel": "linear", "options": {}}, sizes, 512 * 512 * 300])
        twice = page.evaluate(CASES, [{"kernel": "linear", "options": {"epilogue": "swiglu"}}, sizes, 512 * 512 * 300])
        causal = page.evaluate(CASES, [{"kernel": "attention", "options": {"mask": "causal"}}, {}, 1])
        other = page.evaluate(CASES, [{"kernel": "swiglu", "options": {}}, {"rows": 5000}, 1])
    assert [part["first"] for part in found] == [0, 256, 512, 768]
    assert [part["sizes"]["rows"] for part in found] == [256, 256, 256, 232]
    assert [part["sizes"]["x_offset"] for part in found] == [64 + first * 600 for first in (0, 256, 512, 768)]
    assert [part["sizes"]["y_offset"] for part in found] == [8 + first * 520 for first in (0, 256, 512, 768)]
    assert [part["sizes"]["residual_offset"] for part in found] == [16 + first * 530 for first in (0, 256, 512, 768)]
    assert {part["sizes"]["gate_offset"] for part in found} == {24}
    assert len(twice) == 8
    assert len(causal) == len(other) == 1
