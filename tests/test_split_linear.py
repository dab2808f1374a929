"""Wide products in parts: the same numbers, in less memory."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from exporter.bundle import Bundle
from exporter.expressions import evaluate
from exporter.lower import lower_graph
from exporter.lower.plan_bytes import plan_bytes
from tests.interpreter import run_plan

SPLIT = importlib.import_module("exporter.passes.split_linear")  # the pass of the same name hides the module


def lowered(path, wide: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(SPLIT, "WIDE", wide)
    return lower_graph(ir.load(path), "denoiser")


def windows(plan: dict[str, Any]) -> list[tuple[int, int]]:
    bound = [dispatch["bindings"].get("codes") for dispatch in plan["dispatches"] if dispatch["kernel"] == "linear"]
    return [(target["first"], target["rows"]) for target in bound if isinstance(target, dict)]


# Queries, keys, values; then the gates and ups.
@pytest.mark.parametrize(("name", "width"), [("long-text", 256), ("two-heads-ternary", 128)])
def test_parts_give_the_same_numbers(exported, monkeypatch, name, width) -> None:
    bundle = Bundle(exported(name))
    path = bundle.graph("denoiser")
    whole, parts = (lowered(path, wide, monkeypatch) for wide in (10**9, 256))
    mlp = (3 * width, 6 * width)
    assert windows(whole)[-2:] == [(0, 3 * width), mlp]
    assert windows(parts)[-4:] == [(0, width), (width, width), (2 * width, width), mlp]
    rng = np.random.default_rng(3)
    symbols = {"image_tokens": 6, "text_tokens": 5}
    inputs = {
        value["name"]: rng.standard_normal(evaluate(value["elements"], symbols)).astype(np.float32)
        for value in whole["values"]
        if value["role"] == "input"
    }
    found = [run_plan(p, lambda n: bundle.tensor("denoiser", n), symbols, inputs) for p in (whole, parts)]
    np.testing.assert_allclose(found[1]["velocity"], found[0]["velocity"], rtol=1e-5, atol=1e-6)


def test_parts_take_less_memory(exported, monkeypatch) -> None:
    path = Bundle(exported("long-text")).graph("denoiser")
    symbols = {"image_tokens": 4096, "text_tokens": 512}
    whole, parts = (plan_bytes(lowered(path, wide, monkeypatch), symbols) for wide in (10**9, 256))
    stream = 4 * (4096 + 512) * 256
    assert parts["arenas"] < 10 * stream < whole["arenas"]


def product(makers) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """x [1, text_tokens, 64] times a stored [512, 64], plus a bias; `makers` use the result."""
    rng = np.random.default_rng(9)
    data = {"m.weight": rng.standard_normal((512, 64)), "m.bias": rng.standard_normal(512)}
    data = {name: values.astype(np.float32) for name, values in data.items()}
    f32, tokens = ir.TensorType(ir.DataType.FLOAT), ir.SymbolicDim("text_tokens")
    x = ir.Value(name="x", shape=ir.Shape([1, tokens, 64]), type=f32)
    stored = {
        name: ir.Value(
            name=name,
            shape=ir.Shape(values.shape),
            type=f32,
            const_value=ir.ExternalTensor(
                "none", 8, values.nbytes, ir.DataType.FLOAT, shape=ir.Shape(values.shape), name=name
            ),
        )
        for name, values in data.items()
    }

    def node(op_type: str, inputs, attributes, shapes) -> list[ir.Value]:
        made = ir.node(op_type, inputs, attributes, num_outputs=len(shapes))
        for index, (out, shape) in enumerate(zip(made.outputs, shapes, strict=True)):
            out.name, out.shape, out.type = f"{op_type}{len(nodes)}_{index}", ir.Shape(shape), f32
        nodes.append(made)
        return list(made.outputs)

    nodes: list[ir.Node] = []
    (turned,) = node("Transpose", [stored["m.weight"]], {"perm": [1, 0]}, [[64, 512]])
    (raw,) = node("MatMul", [x, turned], {}, [[1, tokens, 512]])
    (y,) = node("Add", [raw, stored["m.bias"]], {}, [[1, tokens, 512]])
    outputs = makers(node, y, lambda size: [1, tokens, size])
    for index, output in enumerate(outputs):
        output.name = f"out{index}"
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=stored.values(), opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10), data


def run(makers, monkeypatch) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    monkeypatch.setattr(SPLIT, "WIDE", 256)
    model, data = product(makers)
    plan = lower_graph(model, "encoder")
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    found = run_plan(plan, data.__getitem__, {"text_tokens": 3}, {"x": x})
    return plan, found, x @ data["m.weight"].T + data["m.bias"]


def test_bias_rows_go_with_their_weights(monkeypatch) -> None:
    def halves(node, y, shape):
        low, high = node("Split", [y], {"axis": -1, "num_outputs": 2}, [shape(256), shape(256)])
        return [*node("Sigmoid", [low], {}, [shape(256)]), *node("Neg", [high], {}, [shape(256)])]

    plan, found, y = run(halves, monkeypatch)
    bound = [d["bindings"]["bias"] for d in plan["dispatches"] if d["kernel"] == "linear"]
    assert bound == [{"tensor": "m.bias", "first": first, "rows": 256} for first in (0, 256)]
    np.testing.assert_allclose(found["out0"].reshape(3, 256), 1 / (1 + np.exp(-y[:, :256])), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["out1"].reshape(3, 256), -y[:, 256:], rtol=1e-4, atol=1e-5)


def test_a_product_that_is_also_used_whole_stays_whole(monkeypatch) -> None:
    def both(node, y, shape):
        low, _ = node("Split", [y], {"axis": -1, "num_outputs": 2}, [shape(256), shape(256)])
        return [*node("Sigmoid", [low], {}, [shape(256)]), *node("Neg", [y], {}, [shape(512)])]

    plan, found, y = run(both, monkeypatch)
    assert [d["bindings"]["weight"] for d in plan["dispatches"] if d["kernel"] == "linear"] == ["m.weight"]
    np.testing.assert_allclose(found["out1"].reshape(3, 512), -y, rtol=1e-4, atol=1e-5)


def test_parts_that_no_binding_can_begin_at_stay_in_one(monkeypatch) -> None:
    def uneven(node, y, shape):
        low, high = node("Split", [y], {"axis": -1}, [shape(200), shape(312)])
        return [*node("Sigmoid", [low], {}, [shape(200)]), *node("Neg", [high], {}, [shape(312)])]

    plan, found, y = run(uneven, monkeypatch)
    assert [d["constants"]["N"] for d in plan["dispatches"] if d["kernel"] == "linear"] == [512]
    np.testing.assert_allclose(found["out1"].reshape(3, 312), -y[:, 200:], rtol=1e-4, atol=1e-5)
