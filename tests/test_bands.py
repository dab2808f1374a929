"""Pictures in row bands: the same picture however small the bands, and the memory that they are for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from exporter.bundle import Bundle
from exporter.errors import BadBundle
from exporter.expressions import evaluate
from exporter.graph.decoder import Decoder
from exporter.graph.onnx_export import export_module
from exporter.graph.store_weights import dense_kind, store_weights
from exporter.klein import KLEIN_4B
from exporter.lower import lower_bundle, lower_graph
from exporter.lower.bands import Window, add, ceil_div, divisor, free_symbols, mul, sub, unrolled
from exporter.lower.memory import place
from tests.interpreter import run_plan
from tests.reference import relative_error

ROWS, COLUMNS = 2, 3
WHOLE = 2**40
SIZES = {"one-row": 1, "few-rows": 6_500, "many-rows": 14_500, "whole": WHOLE}  # a row has up to 48·32 elements


@pytest.fixture(scope="module", params=["two-heads-ternary", "deep"])
def decoder(request, exported):
    """Plan, tensors, latents, and the picture that onnxruntime makes of them."""
    bundle = exported(request.param)
    latents = np.random.default_rng(0).standard_normal((1, ROWS, COLUMNS, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(bundle / "decoder.onnx", providers=["CPUExecutionProvider"])
    (image,) = session.run(None, {"latents": latents})
    opened = Bundle(bundle)
    return lower_bundle(bundle)["decoder"], lambda name: opened.tensor("decoder", name), latents, image


def _symbols(band: int, held: int) -> dict[str, int]:
    return {"rows": ROWS, "columns": COLUMNS, "band_elements": band, "held_elements": held}


@pytest.mark.parametrize(("band", "held"), itertools.product(SIZES, (1, WHOLE)))
def test_bands_of_any_size_give_the_same_picture(decoder, band, held):
    plan, tensor, latents, image = decoder
    found = run_plan(plan, tensor, _symbols(SIZES[band], held), {"latents": latents})
    assert relative_error(found["image"], image[0].transpose(1, 2, 0)) < 1e-5


def _rows_of(plan, symbols, wanted) -> int:
    return sum(evaluate(d["uniforms"].get("rows", 1), here) for d, here in unrolled(plan, symbols) if wanted(d))


def test_a_doubled_picture_is_computed_twice_only_where_it_may_not_be_held(decoder):
    plan, *_ = decoder
    doubled = lambda d: d["options"].get("upsample", False)  # noqa: E731
    copies = lambda d: d["options"].get("op") == "identity"  # noqa: E731
    whole, held, dropped = (
        [_rows_of(plan, _symbols(*sizes), wanted) for wanted in (doubled, copies)]
        for sizes in ((WHOLE, 1), (SIZES["many-rows"], WHOLE), (SIZES["many-rows"], 1))
    )
    assert whole[1] == 0 < held[1]
    assert held[0] == whole[0] == (4 + 8 + 16) * ROWS
    assert dropped[0] >= whole[0] + 16 * ROWS


def _sizes(plan: dict[str, Any], symbols: dict[str, int]) -> tuple[int, int]:
    """Bytes of all buffers of a plan and of the largest binding."""
    elements = [evaluate(value["elements"], symbols) for value in plan["values"]]
    pairs = list(zip(plan["values"], elements, strict=True))
    lives = [(4 * n, v["arena"], v["first"], v["last"]) for v, n in pairs if v["role"] == "temporary"]
    others = sum(4 * n for v, n in pairs if v["role"] != "temporary")
    windows = [
        evaluate(b["elements"], here) if isinstance(b, dict) else elements[b]
        for dispatch, here in unrolled(plan, symbols)
        for b in dispatch["bindings"].values()
        if not isinstance(b, str)
    ]
    return sum(place(lives)[1].values()) + others, 4 * max(windows)


@pytest.mark.parametrize(
    ("channels", "most"), [((128, 256, 512, 512), (0.48e9, 1.165e9)), ((96, 192, 384, 384), (0.38e9, 0.9e9))]
)
def test_the_decoder_of_flux2_fits(channels, most):
    """FLUX.2's decoder and its small one at 512x512 and 1024x1024, on a device that binds 128 MiB."""
    with torch.device("meta"):
        model = export_module(Decoder({**KLEIN_4B["vae"], "decoder_block_out_channels": channels}), ())
        store_weights(model, dense_kind, lambda name: (name, None, 0.0))
    plan = lower_graph(model, "decoder")
    for latents, bound in zip((32, 64), most, strict=True):
        total, largest = _sizes(plan, {"rows": latents, "columns": latents, **free_symbols(128 * 2**20)})
        assert total < bound
        assert largest <= 64 * 2**20


class Sums(torch.nn.Module):
    """Convolutions and sums in orders that no decoder has: f32[1, 8, rows, columns] -> f32[1, 6, rows, columns]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(8, 12, 5, padding=2)
        self.second = torch.nn.Conv2d(12, 12, 3, padding=1)
        self.third = torch.nn.Conv2d(12, 12, 1)
        self.last = torch.nn.Conv2d(12, 6, 3, padding=1, bias=False)
        self.norm = torch.nn.GroupNorm(3, 12)

    def forward(self, latents):
        a = self.first(latents)
        b = self.second(a) + a
        c = b + self.third(self.norm(b))
        n = self.norm(c + a)
        return self.last(torch.nn.functional.silu(n)) + self.last(self.second(n) + n)

    def example(self):
        dims = {2: torch.export.Dim("rows", min=1), 3: torch.export.Dim("columns", min=1)}
        return {"latents": torch.zeros(1, 8, 6, 5)}, {"latents": dims}, "sums"


@torch.no_grad()
def test_convolutions_and_sums_in_any_order_lower():
    torch.manual_seed(0)
    module = Sums().half().float()
    model = export_module(module, ())
    store_weights(model, dense_kind, lambda name: (name, None, 0.0))
    plan = lower_graph(model, "encoder")
    state = {
        name: value.permute(0, 2, 3, 1).half() if value.ndim == 4 else value
        for name, value in module.state_dict().items()
    }
    assert {d["options"]["residual"] for d in plan["dispatches"] if d["kernel"] == "conv2d"} == {"none", "add"}
    latents = torch.randn(1, 8, 7, 9)
    expected = module(latents)[0].numpy().transpose(1, 2, 0)
    for band in (1, 500, WHOLE):
        symbols = {"rows": 7, "columns": 9, "band_elements": band, "held_elements": 1}
        found = run_plan(plan, lambda name: state[name].numpy(), symbols, {"latents": latents.numpy()})
        assert relative_error(found["sums"], expected) < 1e-5


def _node(op_type: str, inputs: list[ir.Value], shape: list[Any], **attributes: Any) -> ir.Node:
    node = ir.node(op_type, inputs, attributes, name=f"block.{op_type.lower()}")
    node.outputs[0].name, node.outputs[0].shape = f"{op_type}.out", ir.Shape(shape)
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node


def _refusal(op_type: str, shape: list[Any], stored: list[int] | np.ndarray, **attributes: Any) -> str:
    """What the lowering says to a graph of one node with a picture and a second operand."""
    rows = [1, 8, ir.SymbolicDim("rows"), ir.SymbolicDim("columns")]
    x = ir.Value(name="latents", shape=ir.Shape(rows), type=ir.TensorType(ir.DataType.FLOAT))
    if isinstance(stored, list):
        other = ir.Value(name="weight", shape=ir.Shape(stored), type=ir.TensorType(ir.DataType.FLOAT))
        inputs, stored_values = [x, other], [other]
    else:
        other = ir.Value(name="scales", const_value=ir.tensor(stored))
        inputs, stored_values = [x, None, other], [other]
    node = _node(op_type, inputs, shape, **attributes)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=stored_values, opset_imports={"": 23}, name="g")
    with pytest.raises(BadBundle) as caught:
        lower_graph(ir.Model(graph, ir_version=10), "decoder")
    return str(caught.value)


def test_what_no_kernel_computes_is_refused_in_one_line():
    doubled = [1, 8, ir.SymbolicDim("2*rows"), ir.SymbolicDim("2*columns")]
    said = _refusal("Resize", doubled, np.float32([1, 1, 2, 2]), mode="nearest")
    assert said == (
        "Resize at block.resize: nearest-neighbour doubling of height and width, for one convolution alone, expected"
    )
    same = [1, 4, ir.SymbolicDim("rows"), ir.SymbolicDim("columns")]
    said = _refusal("Conv", same, [4, 8, 3, 3], pads=[0, 0, 0, 0])
    assert said == (
        "Conv at block.conv: an odd square kernel with stride 1, no groups and padding to the same size expected"
    )


def test_expressions_are_folded_where_all_is_known():
    assert add(2, ["add", 3, "rows"], 4) == ["add", 9, "rows"]
    assert mul(2, ["mul", 3, "rows"]) == ["mul", 6, "rows"] and mul(0, "rows") == 0 and mul(1, "rows") == "rows"
    assert sub("rows", 0) == "rows" and sub(["mul", 2, "rows"], ["mul", 2, "rows"]) == 0
    assert ceil_div(7, 2) == 4 and ceil_div("rows", 2) == ["ceil_div", "rows", 2]


@pytest.mark.parametrize(
    ("expression", "known"),
    [
        (["mul", 6, "rows", 4], 24),
        (["add", ["mul", 12, "rows"], 18], 6),
        (["min", 24, ["sub", 36, 0]], 12),
        (["floor_div", 64, "rows"], 1),
        ("rows", 1),
        (7, 7),
    ],
)
def test_the_divisor_of_an_expression_divides_it(expression, known):
    assert divisor(expression) == known
    assert all(evaluate(expression, {"rows": rows}) % known == 0 for rows in range(1, 9))


def test_a_window_starts_at_a_multiple_of_256_bytes():
    assert Window.of(3, ["mul", 128, "band"], 32) == (Window(3, ["mul", 128, "band"], 32), 0)
    for start in range(0, 200, 7):
        (value, first, elements), offset = Window.of(3, start, 10)
        assert (value, first + offset, elements) == (3, start, offset + 10) and first % 64 == 0 and 0 <= offset < 64
