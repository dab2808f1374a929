"""Group norm as a plan runs it, from kernel to kernel and in windows: what f32 loses must stay small."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.job import GUARD, make_job
from tests.kernels.runners import BrowserRunner
from webgpu_kernels import Case, get, render_all

GROUPS, CHUNKS, CHANNELS, EPS = 4, 8, 32, 1e-6


def _run(runner: BrowserRunner, kernel: str, constants: dict, uniforms: dict, inputs: dict, outputs: dict) -> list:
    record = get(kernel)
    case = Case("chain", {}, constants, uniforms, {k: v.astype(np.float32) for k, v in inputs.items()}, outputs)
    buffers = runner.run(make_job(record, render_all(kernel, {})[0], case))
    return [np.frombuffer(buffers[name], np.float32)[GUARD:][:count] for name, count in outputs.items()]


def _pictures() -> dict[str, np.ndarray]:
    random = np.random.default_rng(12)
    outlier = random.standard_normal((600, CHANNELS))
    outlier[::100] = 41_000
    return {
        "large": random.standard_normal((77, CHANNELS)) * 41_000,
        "offset": random.standard_normal((640, CHANNELS)) * 400 + 41_000,
        "outlier": outlier,
    }


@pytest.mark.parametrize("name", ["large", "offset", "outlier"])
def test_windows_normalize_like_the_whole_picture(name: str, browser_runner: BrowserRunner) -> None:
    x = _pictures()[name].astype(np.float32)
    random = np.random.default_rng(13)
    weight, bias = random.standard_normal((2, CHANNELS)).astype(np.float32)
    slots = []
    for window in np.split(x, [37, 50]):
        constants = {"CHANNELS": CHANNELS, "GROUPS": GROUPS, "CHUNKS": CHUNKS}
        uniforms = {"pixels": len(window), "x_offset": 0, "slot_first": 0}
        sizes = {"stats": CHUNKS * GROUPS * 3}
        slots += _run(browser_runner, "group_norm_stats", constants, uniforms, {"x": window}, sizes)
    scale, shift = _run(
        browser_runner,
        "group_norm_affine",
        {"CHANNELS": CHANNELS, "GROUPS": GROUPS, "EPS": EPS},
        {"slots": 3 * CHUNKS},
        {"stats": np.concatenate(slots), "weight": weight, "bias": bias},
        {"scale": CHANNELS, "shift": CHANNELS},
    )
    uniforms = {"pixels": len(x), "x_offset": 0, "y_offset": 0}
    inputs = {"x": x, "scale": scale, "shift": shift}
    (y,) = _run(browser_runner, "group_norm", {"CHANNELS": CHANNELS}, uniforms, inputs, {"y": x.size})

    grouped = x.astype(np.float64).reshape(len(x), GROUPS, -1)
    deviation = np.sqrt(grouped.var((0, 2), keepdims=True) + EPS)
    expected = ((grouped - grouped.mean((0, 2), keepdims=True)) / deviation).reshape(x.shape) * weight + bias
    assert np.linalg.norm(y - expected.reshape(-1)) <= 2e-5 * np.linalg.norm(expected)
