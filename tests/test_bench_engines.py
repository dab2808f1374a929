"""Engines outside the browser that `build.py bench --peers` runs, as far as a CPU runs them."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from exporter.bench import engines
from exporter.bench.peers import PRODUCTS, product_model
from exporter.klein import KLEIN_4B


def run(model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_a_chain_of_products_is_the_product_so_many_times() -> None:
    x = np.random.default_rng(1).standard_normal((5, 256)).astype(np.float32)
    once = run(product_model(5, 256, 256, (None, 0, 0)), x)
    twice = run(product_model(5, 256, 256, (None, 0, 0), count=2), x)
    np.testing.assert_allclose(run(product_model(5, 256, 256, (None, 0, 0)), once), twice, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("peer", PRODUCTS)
def test_every_product_of_the_page_is_one_that_onnxruntime_runs(peer) -> None:
    y = run(product_model(3, 130, 256, peer), np.ones((3, 256), np.float32))
    assert y.shape == (3, 130) and np.isfinite(y).all() and y.std() > 0


def test_a_step_has_klein_s_operands_and_gives_velocities() -> None:
    config = {**KLEIN_4B["transformer"], "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    config["joint_attention_dim"] = 96
    model = engines.random_transformer(config, "cpu", torch.float32)
    step = engines.step_of(model, config, (64, 48), text_tokens=7)
    assert step().shape == (1, 12, 128) and torch.isfinite(step()).all()
    assert engines.median_ms(step, lambda: None, runs=2) > 0


def test_onnxruntime_is_timed_without_what_a_run_costs_once() -> None:
    rows = list(engines._onnxruntime((8, 1, 256), [], provider="CPUExecutionProvider"))
    assert [row["shape"] for row in rows] == ["8x256x256"] * len(engines.ONNX_PRODUCTS)
    assert {row["product"] for row in rows} == {"2-bit block 128 level 4", "4-bit block 32 level 4", "dense"}
    assert all(row["tflops"] == pytest.approx(2 * 8 * 256 * 256 / row["ms"] / 1e9) for row in rows)


def test_an_engine_that_cannot_run_here_is_a_row_that_says_so() -> None:
    rows = engines.measure_engines((4, 128, 128), ((64, 64),), "before")
    assert {row["when"] for row in rows} == {"before"}
    failed = {row["engine"]: row["error"] for row in rows if "error" in row}
    assert set(failed) == set(engines.ENGINES) and all(failed.values())
    assert "gemlite" in failed["gemlite"] and "WebGpuExecutionProvider" in failed["onnxruntime-webgpu"]
