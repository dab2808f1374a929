"""Matrices of MLX packs written by mlx itself: every code and scale passes through, damage is one line."""

import json

import mlx.core as mx
import numpy as np
import pytest

from exporter.errors import BadCheckpoint
from exporter.packing import unpack
from exporter.sources import open_component
from tests.mlx_packs import (
    BITS,
    DTYPES,
    FILE,
    NAME,
    affine_triple,
    low_bit,
    low_bit_triple,
    numbers,
    packed,
    words_of,
    write,
)


def refusal(action) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    return message


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (7, 384), (129, 1280)])
@pytest.mark.parametrize("kind", BITS)
def test_low_bit_matrix_passes_through(tmp_path, kind, rows, columns, dtype):
    codes, scales = low_bit(kind, rows, columns)
    triple = low_bit_triple(kind, codes, scales, DTYPES[dtype])
    # A short odd tensor first: what follows starts at an odd byte.
    folder = write(tmp_path / "transformer-x", FILE, {**packed(triple), "a.bias": mx.ones((3,), mx.bfloat16)})
    source = open_component(folder, "transformer")
    name = f"{NAME}.weight"
    assert source.names() == ["a.bias", name]
    assert source.shape(name) == (rows, columns) and source.label(name) == f"transformer-x/{FILE}"
    given = source.given(name)
    assert (given.kind, given.group, set(given.parts)) == (kind, 128, {".codes", ".scales"})
    assert given.parts[".codes"].dtype == np.uint32 and given.parts[".scales"].dtype == np.float16
    assert np.array_equal(given.parts[".codes"], words_of(codes, BITS[kind]))
    assert np.array_equal(given.parts[".scales"], scales)
    expected = mx.dequantize(
        *(part if part.dtype == mx.uint32 else part.astype(mx.float32) for part in triple.values()),
        group_size=128,
        bits=BITS[kind],
    )
    assert np.array_equal(source.tensor(name), np.array(expected))
    assert np.array_equal(unpack(kind, given.parts, columns), np.array(expected))
    assert source.given("a.bias") is None and np.array_equal(source.tensor("a.bias"), [1, 1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "group"), [(1, 64, 64), (5, 192, 64), (130, 640, 64), (6, 256, 128)])
def test_four_bit_matrix_passes_through(tmp_path, rows, columns, group, dtype):
    weight = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    # A scale that is exact in float16 comes of values that are: mlx rounds scales to the values' own type.
    triple = affine_triple(weight, group, mx.float16 if dtype == "F32" else DTYPES[dtype])
    triple = {suffix: part.astype(DTYPES[dtype]) if suffix != ".weight" else part for suffix, part in triple.items()}
    folder = write(
        tmp_path / "text_encoder-4", "model.safetensors", packed(triple, "model.q"), bits=4, group_size=group
    )
    source = open_component(folder, "text_encoder")
    given = source.given("model.q.weight")
    assert (given.kind, given.group, source.shape("model.q.weight")) == ("int4", group, (rows, columns))
    scales, biases = numbers(triple[".scales"]), numbers(triple[".biases"])
    assert np.array_equal(given.parts[".codes"], np.array(triple[".weight"]))
    assert np.array_equal(given.parts[".scales"], scales) and np.array_equal(given.parts[".offsets"], biases)
    assert rows * columns < 1000 or (scales < 0).any() and (scales > 0).any()
    found = source.tensor("model.q.weight")
    assert np.array_equal(found, unpack("int4", given.parts, columns, group))
    expected = mx.dequantize(triple[".weight"], mx.array(scales), mx.array(biases), group_size=group, bits=4)
    np.testing.assert_allclose(found, np.array(expected), rtol=0, atol=2e-6)  # mlx may fuse the multiplication


def test_headers_of_mlx_are_not_padded(tmp_path):
    starts = set()
    for length in range(1, 9):
        folder = write(tmp_path / str(length), FILE, {"w" * length: mx.arange(6, dtype=mx.float32).reshape(2, 3)})
        start = 8 + int.from_bytes((folder / FILE).read_bytes()[:8], "little")
        starts.add(start % 8)
        assert np.array_equal(open_component(folder, "vae").tensor("w" * length), [[0, 1, 2], [3, 4, 5]])
    assert len(starts) > 4


def test_bits_are_told_by_the_groups_of_the_component_or_by_the_config(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    four, two = packed(affine_triple(weight), "x"), packed(low_bit_triple("ternary", *low_bit("ternary", 4, 256)), "x")
    # Rows of both take 256 bits a scale.
    for component, file, tensors, kind in [
        ("text_encoder", "model.safetensors", four, "int4"),
        ("transformer", FILE, two, "ternary"),
    ]:
        assert open_component(write(tmp_path / component, file, tensors), component).given("x.weight").kind == kind
    folder = write(tmp_path / "b", FILE, four)
    (folder / "config.json").write_text(json.dumps({"quantization": {"group_size": 64, "bits": 4}}))
    assert open_component(folder, "transformer").given("x.weight").kind == "int4"


@pytest.mark.parametrize("value", [1e-7, 2.0**-20 + 2.0**-30, 1e6])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_scale_that_float16_does_not_hold_is_not_given(tmp_path, bits, value):
    scale = np.full((2, 1), value, np.float32)
    factor, columns = {1: (-0.5, 128), 2: (-1, 128), 4: (-8, 64)}[bits]
    codes = np.ones((2, columns), np.uint8)
    triple = {
        ".weight": mx.array(words_of(codes, bits)),
        ".scales": mx.array(scale),
        ".biases": mx.array(scale * np.float32(factor)),
    }
    folder = write(tmp_path / "t", FILE, packed(triple), bits=bits, group_size=columns)
    source = open_component(folder, "transformer")
    assert source.given(f"{NAME}.weight") is None
    expected = np.float32(scale[0, 0]) * np.float32(1 + factor)
    assert np.array_equal(source.tensor(f"{NAME}.weight"), np.full((2, columns), expected))


def ternary_tensors() -> dict[str, np.ndarray]:
    triple = low_bit_triple("ternary", *low_bit("ternary", 4, 256))
    return {suffix: np.array(part) if suffix == ".weight" else numbers(part) for suffix, part in triple.items()}


def set_code_three(tensors):
    tensors[".weight"][2, 5] |= 3 << 30


def move_bias(tensors):
    tensors[".scales"][1, 1], tensors[".biases"][1, 1] = 0.25, -0.5


def spoil_scale(tensors):
    tensors[".scales"][0, 1] = np.nan


def spoil_bias(tensors):
    tensors[".biases"][0, 1] = np.inf


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (set_code_three, "expected codes 0, 1 and 2, found code 3 in 1 words"),
        (move_bias, "expected biases equal to -scale for ternary, found scale 0.25 with bias -0.5"),
        (spoil_scale, "expected finite scales, found nan"),
        (spoil_bias, "expected finite biases, found inf"),
    ],
)
def test_matrix_that_is_not_ternary_is_refused(tmp_path, damage, words):
    tensors = ternary_tensors()
    damage(tensors)
    folder = write(tmp_path / "t", FILE, packed({suffix: mx.array(part) for suffix, part in tensors.items()}))
    source = open_component(folder, "transformer")
    assert refusal(lambda: source.given(f"{NAME}.weight")) == f"t/{FILE}: tensor {NAME}.weight: {words}"


def test_matrix_of_one_bit_that_is_not_symmetric_is_refused(tmp_path):
    codes, scales = low_bit("binary", 4, 128)
    triple = low_bit_triple("binary", codes, scales)
    triple[".biases"] = triple[".scales"]
    source = open_component(write(tmp_path / "t", FILE, packed(triple)), "transformer")
    assert "expected biases equal to -scale / 2 for binary, found scale" in refusal(
        lambda: source.given(f"{NAME}.weight")
    )


def test_low_bit_groups_other_than_128_are_refused(tmp_path):
    triple = {
        ".weight": mx.zeros((2, 8), mx.uint32),
        ".scales": mx.ones((2, 2), mx.bfloat16),
        ".biases": -mx.ones((2, 2), mx.bfloat16),
    }
    source = open_component(write(tmp_path / "t", FILE, packed(triple), bits=2, group_size=64), "transformer")
    message = refusal(lambda: source.given(f"{NAME}.weight"))
    assert message == f"t/{FILE}: tensor {NAME}.weight: expected groups of 128 for ternary, found 64"


@pytest.mark.parametrize(
    ("changes", "record", "words"),
    [
        ({".scales": None}, {}, f"expected {NAME}.scales beside its packed words, found none"),
        ({".biases": None}, {}, f"expected {NAME}.biases beside its packed words, found none"),
        ({".scales": mx.ones((4, 2), mx.int32)}, {}, "expected scales among BF16, F16, F32, found I32"),
        ({".scales": mx.ones((3, 2))}, {}, "expected a row of scales for each of words, found [3, 2], [4, 16]"),
        ({".biases": mx.ones((4, 1))}, {}, "expected scales and biases of one shape, found [4, 2] and [4, 1]"),
        ({}, {"bits": 2, "group_size": 64}, "expected 2 bits in groups of 64 as t/quantization_config.json says"),
        ({".weight": mx.ones((4, 24), mx.uint32)}, {}, "expected 1, 2 or 4 bits in groups of 128, found 384 bits"),
    ],
)
def test_triple_that_does_not_fit_together_is_refused(tmp_path, changes, record, words):
    triple = {suffix: mx.array(part) for suffix, part in ternary_tensors().items()} | changes
    tensors = packed({suffix: part for suffix, part in triple.items() if part is not None})
    folder = write(tmp_path / "t", FILE, tensors, **record)
    message = refusal(lambda: open_component(folder, "transformer"))
    assert message.startswith(f"t/{FILE}: tensor {NAME}.weight: ") and words in message


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"bits": 3, "group_size": 128}, "t/quantization_config.json: expected bits 1, 2 or 4, found 3"),
        ({"bits": 2, "group_size": "128"}, "expected group_size as a whole number, found '128'"),
    ],
)
def test_record_that_makes_no_sense_is_refused(tmp_path, record, words):
    tensors = packed({suffix: mx.array(part) for suffix, part in ternary_tensors().items()})
    assert words in refusal(lambda: open_component(write(tmp_path / "t", FILE, tensors, **record), "transformer"))
