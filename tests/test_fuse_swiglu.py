"""Products whose columns are gates and ups: one dispatch where a weight has them side by side, else as before."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from tests.test_split_linear import run

SWIGLU = importlib.import_module("exporter.passes.fuse_swiglu")  # the pass of the same name hides the module


def halves(gate: int, up: int, size: int, *, sigmoid_of: tuple[int, int] | None = None):
    """silu(y[gate : gate + size]) · y[up : up + size]; with `sigmoid_of` also what becomes of other columns."""

    def makers(node, y, shape):
        cuts = sorted({0, gate, gate + size, up, up + size, *(sigmoid_of or ()), 512})
        sizes = [end - start for start, end in zip(cuts, cuts[1:], strict=False)]
        pieces = dict(zip(cuts, node("Split", [y], {"axis": -1}, [shape(s) for s in sizes]), strict=False))
        (sigmoid,) = node("Sigmoid", [pieces[gate]], {}, [shape(size)])
        (silu,) = node("Mul", [pieces[gate], sigmoid], {}, [shape(size)])
        outputs = node("Mul", [silu, pieces[up]], {}, [shape(size)])
        if sigmoid_of is not None:
            outputs += node("Sigmoid", [pieces[sigmoid_of[0]]], {}, [shape(sigmoid_of[1] - sigmoid_of[0])])
        return outputs

    return makers


def check(found: np.ndarray, y: np.ndarray, gate: int, up: int, size: int) -> None:
    gates, ups = y[:, gate : gate + size], y[:, up : up + size]
    expected = gates / (1 + np.exp(-gates)) * ups
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_gates_and_ups_become_one_product(monkeypatch) -> None:
    plan, found, y = run(halves(0, 256, 256), monkeypatch)
    (dispatch,) = plan["dispatches"]
    assert dispatch["options"]["epilogue"] == "swiglu" and dispatch["constants"]["N"] == 256
    assert dispatch["bindings"]["weight"] == "m.weight" and dispatch["bindings"]["bias"] == "m.bias"
    check(found["out0"], y, 0, 256, 256)


@pytest.mark.parametrize(("gate", "others"), [(128, (0, 128)), (0, (384, 512))])
def test_what_lies_beside_them_becomes_another(gate: int, others: tuple[int, int], monkeypatch) -> None:
    size = 192
    plan, found, y = run(halves(gate, gate + size, size, sigmoid_of=others), monkeypatch)
    products = [d for d in plan["dispatches"] if d["kernel"] == "linear"]
    windows = {d["options"]["epilogue"]: d["bindings"]["bias"] for d in products}
    assert windows == {
        "swiglu": {"tensor": "m.bias", "first": gate, "rows": 2 * size},
        "none": {"tensor": "m.bias", "first": others[0], "rows": 128},
    }
    check(found["out0"], y, gate, gate + size, size)
    expected = 1 / (1 + np.exp(-y[:, slice(*others)]))
    np.testing.assert_allclose(found["out1"].reshape(3, 128), expected, rtol=1e-4, atol=1e-5)


# The up first; something between; a beginning that no binding can have.
@pytest.mark.parametrize(("gate", "up", "size"), [(256, 0, 256), (0, 384, 128), (64, 256, 192)])
def test_other_orders_are_computed_apart(gate: int, up: int, size: int, monkeypatch) -> None:
    plan, found, y = run(halves(gate, up, size), monkeypatch)
    assert [d["kernel"] for d in plan["dispatches"]][-1] == "swiglu"
    check(found["out0"], y, gate, up, size)


def test_a_gate_that_is_used_again_is_stored(monkeypatch) -> None:
    plan, found, y = run(halves(0, 256, 256, sigmoid_of=(0, 256)), monkeypatch)
    assert "swiglu" in [d["kernel"] for d in plan["dispatches"]]
    check(found["out0"], y, 0, 256, 256)


def test_weights_that_some_devices_cannot_bind_whole_stay_divisible(monkeypatch) -> None:
    for limit, kernels in ((4 * 512 * 64, ["linear"]), (4 * 512 * 64 - 1, ["linear", "linear", "swiglu"])):
        monkeypatch.setattr(SWIGLU, "CORE_BINDING", limit)
        plan, _, _ = run(halves(0, 256, 256), monkeypatch)
        assert [d["kernel"] for d in plan["dispatches"]] == kernels
