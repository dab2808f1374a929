"""HQQ packs that hqq itself wrote: its codes and scales bit for bit, its values, and what rounding offsets costs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.packing import unpack
from exporter.sources import open_component
from exporter.sources.hqq import open_hqq
from exporter.storage import StoredTensor
from tests.torch_files import HQQ, LABEL, hqq_unpacked, refusal, save, words_of

PACK = HQQ / "qmodel.pt"
MODULE = "model.layers.0.mlp.up_proj"
NAME = f"{MODULE}.weight"
HALF = [
    f"{dtype}.{optimiser}.{size}.g64"
    for dtype in ("float16", "bfloat16")
    for optimiser in ("optimised", "plain")
    for size in ("4x128", "6x320")
] + ["float16.optimised.4x192.g32", "bfloat16.optimised.2x1280.g128"]
SINGLE = [f"float32.{optimiser}.{size}.g64" for optimiser in ("optimised", "plain") for size in ("4x128", "6x320")]


def hqq_module(name: str = "float16.optimised.4x128.g64") -> dict:
    """What the pack says of a module."""
    return torch.load(PACK)[name]


def save_module(tmp_path: Path, parts: dict) -> Path:
    """A pack of this one module, as MODULE."""
    return save(tmp_path / "qmodel.pt", {MODULE: parts})


def even_module(name: str) -> dict:
    """A module with the codes of one in the pack, zeros of 8 and scales that float16 holds eight times."""
    parts = hqq_module(name)
    steps = torch.arange(1, len(parts["scale"]) + 1).view(-1, 1)
    return parts | {"scale": (steps / 2048).to(parts["scale"].dtype), "zero": torch.full_like(parts["zero"], 8)}


@pytest.mark.parametrize("module", HALF + SINGLE)
def test_values_are_those_that_hqq_computes(module):
    source, name = open_hqq(PACK, LABEL), f"{module}.weight"
    assert source.names() == sorted(f"{module}.weight" for module in HALF + SINGLE)
    _, values = hqq_unpacked(module)
    found = source.tensor(name)
    assert source.shape(name) == found.shape == values.shape and source.label(name) == LABEL
    assert found.dtype == np.float32 and np.array_equal(found, values)


def check_given(source, name: str, module: str, scale: torch.Tensor, values: np.ndarray) -> None:
    """Check codes and scales bit for bit, offsets to half a step of float16, and the error by the values."""
    codes, group = hqq_unpacked(module)[0], int(module.rpartition(".g")[2])
    given = source.given(name)
    assert (given.kind, given.group) == ("int4", group)
    assert given.parts[".codes"].dtype == np.uint32 and np.array_equal(given.parts[".codes"], words_of(codes, 4))
    assert given.parts[".scales"].dtype == given.parts[".offsets"].dtype == np.float16
    assert np.array_equal(given.parts[".scales"], scale.float().numpy().reshape(len(codes), -1))
    difference = unpack("int4", given.parts, codes.shape[1], group).astype(np.float64) - values
    assert np.abs(difference).max() <= np.spacing(np.abs(given.parts[".offsets"]).max()) * 0.501
    error = np.linalg.norm(difference) / np.linalg.norm(values.astype(np.float64))
    assert given.relative_error == pytest.approx(error, rel=1e-6) and 0 < error < 1e-3
    stored = StoredTensor("w", "int4", codes.shape, name, group).take(given)
    assert not stored.lossless and stored.relative_error == given.relative_error


@pytest.mark.parametrize("module", HALF)
def test_codes_and_scales_pass_through_and_the_error_of_the_offsets_is_told(module):
    source, scale = open_hqq(PACK, LABEL), hqq_module(module)["scale"]
    check_given(source, f"{module}.weight", module, scale, hqq_unpacked(module)[1])


@pytest.mark.parametrize("module", SINGLE)
def test_float32_scales_pass_through_where_float16_holds_them(tmp_path, module):
    assert open_hqq(PACK, LABEL).given(f"{module}.weight") is None
    parts = hqq_module(module)
    parts["scale"] = parts["scale"].half().float()
    source = open_hqq(save_module(tmp_path, parts), LABEL)
    check_given(source, NAME, module, parts["scale"], source.tensor(NAME))


@pytest.mark.parametrize("module", HALF + SINGLE)
def test_offsets_that_float16_holds_cost_nothing(tmp_path, module):
    parts, (codes, _), group = even_module(module), hqq_unpacked(module), int(module.rpartition(".g")[2])
    source = open_hqq(save_module(tmp_path, parts), LABEL)
    given, scales = source.given(NAME), parts["scale"].float().numpy().reshape(len(codes), -1)
    assert np.array_equal(given.parts[".codes"], words_of(codes, 4)) and given.relative_error == 0
    assert np.array_equal(given.parts[".scales"], scales) and np.array_equal(given.parts[".offsets"], -8 * scales)
    values = source.tensor(NAME)
    assert np.array_equal(values, (codes - np.float32(8)) * np.repeat(scales, group, axis=1))
    assert np.array_equal(unpack("int4", given.parts, codes.shape[1], group), values)
    stored = StoredTensor("w", "int4", codes.shape, NAME, group).take(given)
    assert stored.lossless and stored.relative_error == 0


# The third product is lost whole; the last is 1 in float32, but not exactly.
@pytest.mark.parametrize(
    ("scale", "zero"), [(0.25, 0.1), (2.0**-20, 2.0**-10), (0.5, 1e-30), (1 + 2.0**-10, 1 / (1 + 2.0**-10))]
)
def test_one_offset_that_float16_rounds_is_enough_for_an_error(tmp_path, scale, zero):
    parts = even_module("float32.plain.4x128.g64")
    parts["scale"][5], parts["zero"][5] = scale, zero
    given = open_hqq(save_module(tmp_path, parts), LABEL).given(NAME)
    assert 0 < given.relative_error < 1e-3
    assert given.parts[".offsets"][2, 1] == np.float16(-np.float64(np.float32(zero)) * scale)


@pytest.mark.parametrize(("scale", "zero"), [(0.1, 8), (2.0**15, 8), (2.0**-3, -1e6)])
def test_scale_or_offset_beyond_float16_gives_f32_values(tmp_path, scale, zero):
    parts = even_module("float32.plain.4x128.g64")
    parts["scale"][5], parts["zero"][5] = scale, zero
    source = open_hqq(save_module(tmp_path, parts), LABEL)
    assert source.given(NAME) is None
    codes = hqq_unpacked("float32.plain.4x128.g64")[0].reshape(-1, 64)
    values = (codes - parts["zero"].numpy()) * parts["scale"].numpy()
    assert np.array_equal(source.tensor(NAME), values.reshape(4, 128))


def test_other_modules_keep_their_tensors(tmp_path):
    bias = torch.randn(4).half()
    dense = {
        "model.embed_tokens": torch.nn.Embedding(9, 4).bfloat16().state_dict(),
        "model.norm": {"weight": torch.nn.Parameter(torch.randn(4).half())},
    }
    path = save(tmp_path / "qmodel.pt", {**dense, MODULE: hqq_module() | {"bias": bias}})
    source = open_component(tmp_path, "text_encoder")
    wanted = {f"{module}.weight": parts["weight"] for module, parts in dense.items()} | {f"{MODULE}.bias": bias}
    assert source.names() == sorted([*wanted, NAME]) and source.label(NAME) == f"{tmp_path.name}/{path.name}"
    for name, tensor in wanted.items():
        assert source.shape(name) == tuple(tensor.shape) and source.given(name) is None
        assert np.array_equal(source.tensor(name), tensor.detach().float().numpy())


BAD_MODULES = {
    "bits": ({"nbits": 3}, "expected nbits 4, found 3"),
    "bits type": ({"nbits": True}, "expected nbits 4, found True"),
    "axis": ({"axis": 0}, "expected axis 1, found 0"),
    "packing": ({"packing": "8bit_u8"}, "expected packing 4bit_u8, found 8bit_u8"),
    "no packing": ({"packing": None}, "expected packing 4bit_u8, found None"),
    "group": ({"group_size": 16}, "expected group_size among 32, 64, 128, found 16"),
    "no group": ({"group_size": None}, "expected group_size among 32, 64, 128, found None"),
    "view": ({"view_as_float": True}, "expected view_as_float False, found True"),
    "scales": ({"quant_scale": True}, "expected quant_scale False, found True"),
    "shape": ({"shape": torch.Size([4, 100])}, r"even number of groups of 64, found \[4, 100\]"),
    "odd": ({"shape": torch.Size([3, 64])}, r"even number of groups of 64, found \[3, 64\]"),
    "no shape": ({"shape": 512}, "even number of groups of 64, found 512"),
    "rows": ({"shape": torch.Size([6, 128])}, r"expected W_q U8 \[6, 64\], found U8 \[4, 64\]"),
    "W_q": ({"W_q": None}, "expected W_q to be a tensor, found None"),
    "W_q type": ({"W_q": torch.zeros(4, 64)}, r"expected W_q U8 \[4, 64\], found F32 \[4, 64\]"),
    "scale": ({"scale": torch.ones(4, 1)}, r"expected scale F32 or F16 or BF16 \[8, 1\], found F32 \[4, 1\]"),
    "zero": ({"zero": torch.ones(8, 1).int()}, r"expected zero F32 or F16 or BF16 \[8, 1\], found I32 \[8, 1\]"),
}


@pytest.mark.parametrize("case", BAD_MODULES)
def test_module_that_is_packed_otherwise_is_refused_by_name(tmp_path, case):
    changes, message = BAD_MODULES[case]
    refusal(f"tensor {NAME}: .*{message}$", open_hqq, save_module(tmp_path, hqq_module() | changes))


@pytest.mark.parametrize("key", ["nbits", "axis", "packing", "group_size", "shape", "scale", "zero"])
def test_module_without_what_it_needs_is_refused(tmp_path, key):
    parts = hqq_module()
    del parts[key]
    message = f"tensor {NAME}: .*{key if key != 'shape' else 'a shape'}.*, found none$"
    refusal(message, open_hqq, save_module(tmp_path, parts))


@pytest.mark.parametrize("key", ["scale", "zero"])
def test_number_that_is_not_finite_is_refused_when_read(tmp_path, key):
    parts = hqq_module()
    parts[key][3] = float("nan")
    source = open_hqq(save_module(tmp_path, parts), LABEL)
    for call in (source.given, source.tensor):
        refusal(f"tensor {NAME}: expected finite {key}, found nan", call, NAME)


def test_file_that_is_no_dict_of_modules_is_refused(tmp_path):
    path = tmp_path / "qmodel.pt"
    refusal("expected a dict of modules, found list", open_hqq, save(path, [1]))
    refusal(
        "tensor a: expected a module's dict under its name, found TorchTensor",
        open_hqq,
        save(path, {"a": torch.zeros(2)}),
    )
    refusal("tensor a.weight: expected a tensor, found int", open_hqq, save(path, {"a": {"weight": 3}}))
    twice = {"a": {"b.weight": torch.zeros(2)}, "a.b": {"weight": torch.zeros(2)}}
    refusal("tensor a.b.weight: expected it once, found it twice", open_hqq, save(path, twice))
