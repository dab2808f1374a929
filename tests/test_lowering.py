"""The lowering: views, arenas, refusals."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import sympy

import webgpu_kernels
from exporter.errors import BadBundle
from exporter.expressions import evaluate
from exporter.lower import lower_bundle, lower_graph
from exporter.lower.memory import ALIGNMENT, assign_arenas, place
from exporter.lower.sizes import divisible, symbol, to_json
from exporter.lower.views import View

TOKENS, ROWS = symbol("text_tokens"), symbol("rows")
N = sympy.Integer


def _elements(view: View, values: dict[sympy.Symbol, int]) -> np.ndarray:
    """Element numbers of a view in order, for concrete sizes."""
    number = lambda size: int(sympy.sympify(size).subs(values))  # noqa: E731
    total = np.array(number(view.offset))
    for size, stride in zip(view.shape, view.strides, strict=True):
        total = total[..., None] + np.arange(number(size)) * number(stride)
    return total


def test_reshape_of_a_view_keeps_the_order_of_elements():
    whole = View.contiguous(0, (N(1), TOKENS, N(24)))
    part = whole.slice(2, N(6), N(12))
    values = {TOKENS: 5}
    expected = _elements(part, values).reshape(-1)
    for shape in [(TOKENS, N(3), N(4)), (N(1), TOKENS, N(2), N(6)), (TOKENS, N(12)), (N(1), TOKENS, N(12), N(1))]:
        shaped = part.reshape(shape)
        assert (_elements(shaped, values).reshape(-1) == expected).all()
    turned = part.reshape((TOKENS, N(3), N(4))).transpose([1, 0, 2])
    assert turned.reshape((3 * TOKENS, N(4))) is None


def test_reshape_merges_an_image_into_tokens_without_a_copy():
    image = View.contiguous(0, (N(1), 2 * ROWS, 2 * ROWS, N(8))).transpose([0, 3, 1, 2])
    tokens = image.reshape((N(1), N(8), sympy.expand(4 * ROWS**2))).transpose([0, 2, 1])
    assert tokens.is_contiguous()


def test_sizes_become_expressions_that_evaluate_alike():
    size = sympy.expand((TOKENS + 3) * ROWS * 4 + 7)
    values = {"text_tokens": 5, "rows": 9}
    assert evaluate(to_json(size), values) == (5 + 3) * 9 * 4 + 7
    assert divisible(8 * TOKENS + 12, 4) and not divisible(8 * TOKENS + 2, 4)


def test_arenas_never_share_a_buffer_across_a_dispatch():
    rng = random.Random(0)
    for _ in range(50):
        count = rng.randrange(2, 40)
        conflicts: list[set[int]] = [set() for _ in range(count)]
        for node in range(1, count):
            for other in rng.sample(range(max(0, node - 4), node), k=min(node, rng.randrange(1, 3))):
                conflicts[node].add(other)
                conflicts[other].add(node)
        lives = [(rng.randrange(1, 5000), first, first + rng.randrange(8)) for first in range(count)]
        arenas = assign_arenas(conflicts, lives)
        assert all(arenas[a] != arenas[b] for a in range(count) for b in conflicts[a])


def test_arenas_take_little_more_than_what_lives_at_once():
    rng = random.Random(2)
    for _ in range(30):
        # Each value is made from the one before, and a few live on, as residual streams do.
        starts = range(80)
        lives = [(4096 * rng.choice((1, 1, 2, 6)), first, first + rng.choice((1, 1, 1, 2, 9, 25))) for first in starts]
        conflicts = [{other for other in (i - 1, i + 1) if 0 <= other < 80} for i in range(80)]
        arenas = assign_arenas(conflicts, lives)
        _, sizes = place([(size, arena, *span) for (size, *span), arena in zip(lives, arenas, strict=True)])
        alive = max(sum(size for size, first, last in lives if first <= time <= last) for time in range(110))
        assert sum(sizes.values()) <= 1.3 * alive


def test_values_alive_together_do_not_overlap():
    rng = random.Random(1)
    for _ in range(100):
        values = []
        for _ in range(rng.randrange(1, 30)):
            first = rng.randrange(30)
            values.append((rng.randrange(1, 5000), rng.randrange(3), first, first + rng.randrange(8)))
        offsets, sizes = place(values)
        for i, (bytes_i, arena_i, first_i, last_i) in enumerate(values):
            assert offsets[i] % ALIGNMENT == 0 and offsets[i] + bytes_i <= sizes[arena_i]
            for j, (bytes_j, arena_j, first_j, last_j) in enumerate(values[:i]):
                together = arena_i == arena_j and first_i <= last_j and first_j <= last_i
                assert not together or offsets[i] + bytes_i <= offsets[j] or offsets[j] + bytes_j <= offsets[i]


def test_plans_obey_webgpu_and_their_own_rules(exported):
    for plan in lower_bundle(exported("two-heads-ternary")).values():
        assert plan["arenas"] <= 8
        for position, dispatch in enumerate(plan["dispatches"]):
            record = webgpu_kernels.get(dispatch["kernel"])
            used: dict[str, set[int]] = {"read": set(), "read_write": set()}
            for binding in record.present_bindings(dispatch["options"]):
                target = dispatch["bindings"][binding.name]
                target = target.get("value") if isinstance(target, dict) else target
                value = plan["values"][target] if isinstance(target, int) else {"role": "tensor"}
                if value["role"] == "temporary":
                    assert value["first"] <= position <= value["last"]
                    used[binding.access].add(value["arena"])
            assert not used["read"] & used["read_write"], dispatch["source"]


def test_fusions_happen(exported):
    plans = lower_bundle(exported("two-heads-ternary"))
    kernels = {name: [d["kernel"] for d in plan["dispatches"]] for name, plan in plans.items()}
    denoiser = plans["denoiser"]["dispatches"]
    assert not [d["source"] for d in denoiser if d["kernel"] == "binary"]
    assert all("rotary" in d["source"] for d in denoiser if d["kernel"] == "unary")  # the single blocks' joint tables
    assert kernels["modulation"] == ["linear", "unary", "linear", "unary"] + 4 * ["linear"]
    assert sum(d["options"].get("modulate", False) for d in denoiser) == 4 * 1 + 2 + 1
    assert kernels["denoiser"].count("rms_norm_rotary") == 4 * 1 + 2 * 2
    epilogues = {
        name: Counter(d["options"]["epilogue"] for d in plan["dispatches"] if d["kernel"] == "linear")
        for name, plan in plans.items()
    }
    assert epilogues["denoiser"] == {"none": 2 + 6 * 1 + 2 + 1, "swiglu": 2 * 1 + 2, "gate_residual": 4 * 1 + 2}
    assert kernels["denoiser"].count("swiglu") == 0
    assert kernels["encoder"].count("swiglu") == 3, "the encoder has gates and ups in weights of their own"
    assert epilogues["encoder"]["residual"] == 2 * 3 and kernels["encoder"].count("binary") == 0
    decoder = plans["decoder"]["dispatches"]
    assert [d["options"]["silu"] for d in decoder if d["kernel"] == "group_norm"] == [False]
    assert kernels["decoder"].count("binary") == 1, "only attention's residual is added by itself"
    assert kernels["decoder"].count("latents_unpack") == 1
    convolutions = [d["options"] for d in decoder if d["kernel"] == "conv2d"]
    assert {options["residual"] for options in convolutions} == {"none", "accumulate"}
    assert {options["norm"] for options in convolutions} == {"none", "affine_silu"}


def _graph(op_type: str, **attributes) -> ir.Model:
    x = ir.Value(
        name="latents", shape=ir.Shape([1, ir.SymbolicDim("text_tokens"), 8]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    node = ir.node(op_type, [x], attributes, name="blocks.0.strange")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "y", x.shape, x.type
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10)


def test_an_operator_without_a_lowering_is_named_with_its_place():
    with pytest.raises(BadBundle, match=r"encoder: no kernel for the ONNX operator Hardmax.*blocks\.0\.strange"):
        lower_graph(_graph("Hardmax"), "encoder")


def test_a_known_operator_lowers():
    plan = lower_graph(_graph("Sigmoid"), "encoder")
    assert [d["kernel"] for d in plan["dispatches"]] == ["unary"]
    assert plan["values"][1] == {"name": "y", "role": "output", "dtype": "f32", "elements": ["mul", 8, "text_tokens"]}
