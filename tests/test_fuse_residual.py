"""Residuals and gates of products: computed with them where nothing else uses the product."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from tests.test_split_linear import run

RESIDUAL = importlib.import_module("exporter.passes.fuse_residual")  # the pass of the same name hides the module


def added(*, gated: bool = False, again: bool = False, first: bool = True, row: bool = False):
    """repeated x + y, or + gate · y, where the gate is x's first row; `row`: that row alone is added to."""

    def makers(node, y, shape):
        x = y.producer().inputs[0].producer().inputs[0]
        (wide,) = node("Concat", [x] * 8, {"axis": -1}, [shape(512)])
        bounds = [node("Constant", [], {"value_ints": [at]}, [[1]])[0] for at in (0, 1, 1, 1)]  # start, end, axis, step
        (gate,) = node("Slice", [wide, *bounds], {}, [[1, 1, 512]])
        product = y
        if gated:
            (product,) = node("Mul", [gate, y] if first else [y, gate], {}, [shape(512)])
        residual = gate if row else wide
        outputs = node("Add", [residual, product] if first else [product, residual], {}, [shape(512)])
        return outputs + (node("Neg", [y], {}, [shape(512)]) if again else [])

    return makers


def expected(y: np.ndarray, gated: bool) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)  # as `run` gives it
    wide = np.tile(x, 8)
    return wide + (wide[0] if gated else 1) * y


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_what_is_added_to_goes_with_the_product(gated: bool, first: bool, monkeypatch) -> None:
    plan, found, y = run(added(gated=gated, first=first), monkeypatch)
    last = plan["dispatches"][-1]
    assert last["kernel"] == "linear" and last["options"]["bias"]
    assert last["options"]["epilogue"] == ("gate_residual" if gated else "residual")
    read = {plan["values"][last["bindings"][name]].get("arena") for name in ("residual", *(["gate"] * gated))}
    assert plan["values"][last["bindings"]["y"]].get("arena") not in read
    np.testing.assert_allclose(found["out0"].reshape(3, 512), expected(y, gated), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gated", [True, False])
def test_a_product_that_is_used_again_is_stored(gated: bool, monkeypatch) -> None:
    plan, found, y = run(added(gated=gated, again=True), monkeypatch)
    products = [d["options"]["epilogue"] for d in plan["dispatches"] if d["kernel"] == "linear"]
    assert products == ["none"]
    np.testing.assert_allclose(found["out0"].reshape(3, 512), expected(y, gated), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["out1"].reshape(3, 512), -y, rtol=1e-4, atol=1e-5)


def test_more_operands_than_every_device_binds_stay_apart(monkeypatch) -> None:
    for most, count in ((7, 1), (6, 3)):  # x, its scales, weight, bias, residual, gate, y
        monkeypatch.setattr(RESIDUAL, "STORAGE_BUFFERS", most)
        plan, found, y = run(added(gated=True), monkeypatch)
        assert len([d for d in plan["dispatches"] if d["kernel"] in ("linear", "binary")]) == count
        np.testing.assert_allclose(found["out0"].reshape(3, 512), expected(y, True), rtol=1e-4, atol=1e-5)


def test_a_row_that_is_added_to_every_row_is_no_residual(monkeypatch) -> None:
    plan, _, _ = run(added(row=True), monkeypatch)
    assert plan["dispatches"][-1]["kernel"] == "binary"
