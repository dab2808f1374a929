"""gemlite packs that gemlite itself wrote: codes and scales bit for bit, and clear refusals."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from exporter.packing import unpack
from exporter.sources import open_component
from exporter.sources.gemlite import open_gemlite
from tests.torch_files import (
    BASE,
    BITS,
    GEMLITE,
    LABEL,
    gemlite_linear,
    gemlite_packed,
    refusal,
    save,
    values_of,
    words_of,
)

NAME = f"{BASE}.weight"
PLAIN = "8x256.8.rows"
ORDERS = ("rows", "columns")
SHAPES = [(8, 256), (5, 1280)]


def test_gemlite_packs_list_their_linears():
    wanted = [f"{n}x{k}.{width}.{order}.weight" for n, k in SHAPES for width in (8, 16, 32) for order in ORDERS]
    for kind in BITS:
        assert open_gemlite(GEMLITE / f"{kind}.pt", LABEL).names() == sorted(wanted)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", BITS)
def test_gemlite_codes_and_scales_pass_through_bit_for_bit(kind, shape, width, order):
    linear = f"{shape[0]}x{shape[1]}.{width}.{order}"
    elements = gemlite_linear(linear, f"{kind}.pt")[f"{BASE}.W_q"]
    assert elements.element_size() * 8 == width and elements.is_contiguous() == (order == "rows")
    codes, scales = gemlite_packed(kind, shape)
    source, name = open_gemlite(GEMLITE / f"{kind}.pt", LABEL), f"{linear}.weight"
    assert source.shape(name) == shape and source.label(name) == LABEL
    given = source.given(name)
    assert (given.kind, given.group, given.relative_error) == (kind, 128, 0)
    assert given.parts[".codes"].dtype == np.uint32 and given.parts[".scales"].dtype == np.float16
    assert np.array_equal(given.parts[".codes"], words_of(codes, BITS[kind]))
    assert np.array_equal(given.parts[".scales"], scales)
    values = source.tensor(name)
    assert values.dtype == np.float32 and np.array_equal(values, values_of(kind, codes, scales))
    assert np.array_equal(unpack(kind, given.parts, shape[1]), values)


@pytest.mark.parametrize("kind", BITS)
def test_gemlite_elements_of_64_bits(tmp_path, kind):
    # gemlite's own packing on a CPU shifts 32-bit values, so 64-bit elements are put together from its bytes.
    codes, _ = gemlite_packed(kind)
    state = gemlite_linear(PLAIN, f"{kind}.pt")
    state[f"{BASE}.W_q"] = state[f"{BASE}.W_q"].t().contiguous().view(torch.int64).t()
    state[f"{BASE}.metadata"][4] = 64 // BITS[kind]
    given = open_gemlite(save(tmp_path / "state_dict.pt", state), LABEL).given(NAME)
    assert np.array_equal(given.parts[".codes"], words_of(codes, BITS[kind]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gemlite_scales_of_16_bits(tmp_path, dtype):
    _, scales = gemlite_packed("ternary")
    scales = torch.from_numpy(scales).to(dtype).float().numpy()
    state = gemlite_linear(PLAIN, "ternary.pt")
    state |= {f"{BASE}.{part}": state[f"{BASE}.{part}"].to(dtype) for part in ("scales", "zeros")}
    given = open_gemlite(save(tmp_path / "state_dict.pt", state), LABEL).given(NAME)
    assert np.array_equal(given.parts[".scales"], scales)


@pytest.mark.parametrize("kind", BITS)
def test_gemlite_scales_that_float16_cannot_hold_come_out_as_f32_values(tmp_path, kind):
    codes, scales = gemlite_packed(kind)
    scales[2, 1] = np.float32(0.1)
    state = gemlite_linear(PLAIN, f"{kind}.pt")
    state[f"{BASE}.scales"][1, 2] = 0.2 if kind == "binary" else 0.1
    state[f"{BASE}.zeros"][1, 2] = -0.1
    source = open_gemlite(save(tmp_path / "state_dict.pt", state), LABEL)
    assert source.given(NAME) is None
    assert np.array_equal(source.tensor(NAME), values_of(kind, codes, scales))


def test_gemlite_dense_tensors_keep_their_names_and_values(tmp_path):
    large = torch.randn(6, 40)
    dense = {
        "norm.weight": torch.randn(40).bfloat16(),
        "a.linear.weight": torch.randn(3, 5).half(),
        "b.linear.weight": torch.nn.Parameter(torch.randn(3, 5)),
        "columns": large[:, 7:19],
        "transposed": large.t(),
        "narrow": torch.randn(5, 1, 4).bfloat16().permute(2, 1, 0),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "number": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "meta_scale": torch.tensor([3.0]),
    }
    packed = gemlite_linear("bias", "others.pt")
    state = OrderedDict(packed | dense)
    state._metadata = {"": {"version": 1}}  # as nn.Module.state_dict adds it
    source = open_gemlite(save(tmp_path / "state_dict.pt", state), LABEL)
    dense[f"{BASE}.bias"] = packed[f"{BASE}.bias"]
    assert source.names() == sorted([*dense, NAME])
    for name, tensor in dense.items():
        found = source.tensor(name)
        assert source.shape(name) == found.shape == tuple(tensor.shape) and source.given(name) is None
        assert found.dtype == np.float32 and np.array_equal(found, tensor.detach().float().numpy()), name


def put(key: str, change):
    """An edit of a state dict: `change` makes the new tensor of BASE.key from the old one, or drops it (None)."""

    def edit(state: dict) -> None:
        old = state.pop(f"{BASE}.{key}")
        new = change(old)
        if new is not None:
            state[f"{BASE}.{key}"] = new

    return edit


def changed(position: int, value: float):
    """A tensor with another value at a position of its flat form."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[position] = value
        return tensor

    return change


BAD_PACKS = {
    "bits": (put("metadata", changed(1, 4)), "1 or 2 bits, found 4 bits"),
    "group": (put("metadata", changed(2, 64)), "group_size 128 in its metadata, found 64"),
    "mask": (put("metadata", changed(3, 1)), "mask 3 in its metadata, found 1"),
    "elements": (put("metadata", changed(4, 16)), "4 codes of 2 bits in each U8, found 16 in its metadata"),
    "channel scales": (put("metadata", changed(9, 1)), "channel_scale_mode 0 in its metadata, found 1"),
    "mode 9": (put("metadata", changed(10, 9)), r"found mode 9 \(of unknown meaning\)"),
    "short metadata": (put("metadata", lambda old: old[:11]), r"12 integers, found I32 \[11\]"),
    "metadata type": (put("metadata", torch.Tensor.float), r"12 integers, found F32 \[12\]"),
    "no scales": (put("scales", lambda _: None), "scales beside .*W_q, found none"),
    "no zeros": (put("zeros", lambda _: None), "zeros beside .*W_q, found none"),
    "no metadata": (put("metadata", lambda _: None), "metadata beside .*W_q, found none"),
    "no W_q": (put("W_q", lambda _: None), "W_q beside it, found none"),
    "K": (put("orig_shape", changed(1, 250)), r"K a multiple of 128, found \[8, 250\]"),
    "N": (put("orig_shape", changed(0, 9)), r"W_q of shape \[64, 9\], found \[64, 8\]"),
    "negative N": (put("orig_shape", changed(0, -8)), r"found \[-8, 256\]"),
    "words": (put("W_q", torch.Tensor.float), "W_q among U8, I16, I32, I64, found F32"),
    "wide words": (put("W_q", torch.Tensor.int), "16 codes of 2 bits in each I32, found 4"),
    "untransposed": (put("W_q", torch.Tensor.t), r"W_q of shape \[64, 8\], found \[8, 64\]"),
    "scales shape": (put("scales", lambda old: old[:1]), r"scales of shape \[2, 8\], found \[1, 8\]"),
    "zeros type": (put("zeros", torch.Tensor.int), "zeros among F32, F16, BF16, found I32"),
    "both": (lambda state: state.update({NAME: torch.zeros(8, 256)}), "either packed or dense, found both"),
    "odd name": (
        lambda state: state.update({"a\n\x1b[2J.scales": torch.ones(1)}),
        r"tensor a\?\?\[2J\.scales: expected a\?",
    ),
    "long name": (
        lambda state: state.update({"a" * 9999 + ".scales": torch.ones(1)}),
        r"a\.\.\.: expected aaa.*\.\.\.$",
    ),
    "no tensor": (lambda state: state.update(step=3), "tensor step: expected a tensor under a name, found int"),
}


@pytest.mark.parametrize("case", BAD_PACKS)
def test_gemlite_pack_that_is_not_as_expected_is_refused_when_opened(tmp_path, case):
    edit, message = BAD_PACKS[case]
    state = gemlite_linear(PLAIN, "ternary.pt")
    edit(state)
    path = save(tmp_path / "state_dict.pt", state)
    refusal(message, open_gemlite, path)


MODES = {
    "no zeros": r"mode 2 \(code \* scale\)",
    "zeros first": r"mode 3 \(\(code - zero\) \* scale\)",
    "one scale a row": r"mode 1 \(code - zero\)",
}


@pytest.mark.parametrize("case", MODES)
def test_gemlite_group_mode_other_than_4_is_refused_by_number_and_meaning(tmp_path, case):
    path = save(tmp_path / "state_dict.pt", gemlite_linear(case, "others.pt"))
    message = rf"{NAME}: expected W_group_mode 4 \(code \* scale \+ zero\), found {MODES[case]}$"
    refusal(message, open_gemlite, path)


BAD_VALUES = {
    "ternary zero": (
        "ternary",
        put("zeros", changed(3, 0.5)),
        r"zeros equal to -scale for .*, found .* zero 0\.5$",
    ),
    "binary zero": (
        "binary",
        put("zeros", changed(3, 0.5)),
        r"zeros equal to -scale / 2 for .*, found .* 0\.5$",
    ),
    "code 3": ("ternary", put("W_q", changed(9, 0b00110001)), "codes 0, 1 and 2, found code 3 in 1 words of 32 bits"),
    "scale": ("ternary", put("scales", changed(3, float("nan"))), "finite scales, found nan"),
    "zero": ("binary", put("zeros", changed(3, float("inf"))), "finite zeros, found inf"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_gemlite_matrix_that_is_not_of_its_kind_is_refused_when_read(tmp_path, case):
    kind, edit, message = BAD_VALUES[case]
    state = gemlite_linear(PLAIN, f"{kind}.pt")
    edit(state)
    source = open_gemlite(save(tmp_path / "state_dict.pt", state), LABEL)
    refusal(f"tensor {NAME}: expected {message}", source.given, NAME)


def test_gemlite_dense_tensor_of_integers_is_refused_when_read(tmp_path):
    source = open_gemlite(save(tmp_path / "state_dict.pt", {"step": torch.arange(3)}), LABEL)
    refusal("tensor step: expected a dtype among F64, F32, F16, BF16, found I64", source.tensor, "step")


def test_gemlite_root_that_is_no_dict_is_refused(tmp_path):
    refusal("expected a dict of tensors, found list", open_gemlite, save(tmp_path / "state_dict.pt", [torch.zeros(2)]))


def test_gemlite_pack_is_found_by_its_file(tmp_path):
    codes, _ = gemlite_packed("binary")
    save(tmp_path / "state_dict.pt", gemlite_linear(PLAIN, "binary.pt"))
    source = open_component(tmp_path, "transformer")
    assert source.label(NAME) == f"{tmp_path.name}/state_dict.pt"
    assert np.array_equal(source.given(NAME).parts[".codes"], words_of(codes, 1))
