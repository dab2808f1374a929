"""Packing of matrices and storing of tensors: round trips, exactness, layouts, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from exporter.errors import BadCheckpoint
from exporter.packing import pack, part_shapes, unpack
from exporter.shards import NAMES
from exporter.sources.source import Given
from exporter.storage import BATCH_NORM_STD, StoredTensor, stored_like
from exporter.trits import unpack_trits

LOW_BIT = ("binary", "ternary")
GROUPS = [("binary", 128), ("ternary", 128)] + [(kind, group) for kind in ("int4", "int8") for group in (128, 64, 32)]


def random_matrix(rows: int, columns: int, seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((rows, columns))).astype(np.float32)


def exact_matrix(kind: str, rows: int, columns: int, seed: int) -> np.ndarray:
    """s·{−1, +1} or s·{−1, 0, +1} per group, with some groups that are all zero."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.001, 0.1, (rows, columns // 128, 1)).astype(np.float16).astype(np.float32)
    scales[rng.random(scales.shape) < 0.1] = 0
    signs = rng.integers(0, 2, (rows, columns // 128, 128)) * 2 - 1
    if kind == "ternary":
        signs = signs * (rng.random(signs.shape) < 0.6)
    return (scales * signs).astype(np.float32).reshape(rows, columns)


@pytest.mark.parametrize("kind", LOW_BIT)
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (7, 384), (3, 1280), (5000, 512)])
def test_matrix_of_the_format_comes_back_exactly(kind, rows, columns):
    weight = exact_matrix(kind, rows, columns, rows + columns)
    packed = pack(kind, weight)
    assert packed.lossless and packed.relative_error == 0
    assert np.array_equal(unpack(kind, packed.parts, columns), weight)


@pytest.mark.parametrize("kind", LOW_BIT)
def test_bfloat16_scales_in_the_usual_range_are_exact(kind):
    weight = exact_matrix(kind, 16, 256, 3)
    bf16 = (weight.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert pack(kind, bf16).lossless


@pytest.mark.parametrize("kind", LOW_BIT)
def test_scale_that_float16_cannot_hold_exactly_is_not_lossless(kind):
    weight = np.full((2, 128), np.float32(0.1))  # 0.1f is no float16
    packed = pack(kind, weight)
    assert not packed.lossless and 0 < packed.relative_error < 1e-3


def test_zero_among_binary_values_is_not_lossless():
    weight = exact_matrix("binary", 2, 128, 1)
    weight[0] = 0.5
    weight[0, 5] = 0
    packed = pack("binary", weight)
    assert not packed.lossless and packed.relative_error > 0.05
    assert pack("ternary", weight).lossless


def test_ternary_group_without_one_sign_is_exact():
    weight = np.zeros((1, 128), np.float32)
    weight[0, 3] = -0.25
    packed = pack("ternary", weight)
    assert packed.lossless and np.array_equal(unpack("ternary", packed.parts, 128), weight)


@pytest.mark.parametrize(("kind", "bits"), [("binary", 1), ("ternary", 2), ("int4", 4), ("int8", 8)])
def test_code_of_column_j_lies_where_the_format_says(kind, bits):
    columns = 256
    weight = random_matrix(3, columns, 8)
    packed = pack(kind, weight)
    parts = packed.parts
    assert {s: (a.dtype, a.shape) for s, a in parts.items()} == {
        suffix: (np.dtype(np.uint32 if dtype == "U32" else np.float16), shape)
        for suffix, (dtype, shape) in part_shapes(kind, 3, columns).items()
    }
    restored = unpack(kind, parts, columns)
    for row, j in [(0, 0), (0, 1), (1, 33), (2, 130), (2, 255)]:
        per_word = 32 // bits
        word = int(parts[".codes"][row, j // per_word])
        code = (word >> (bits * (j % per_word))) & (2**bits - 1)
        scale = float(parts[".scales"][row, j // 128])
        if kind == "binary":
            value = scale if code else -scale
        elif kind == "ternary":
            value = (code - 1) * scale
        else:
            value = np.float32(np.float32(code * scale) + np.float32(parts[".offsets"][row, j // 128]))
        assert restored[row, j] == np.float32(value)


def test_binary_of_random_values_keeps_signs_and_mean():
    weight = random_matrix(4, 256, 5)
    packed = pack("binary", weight)
    restored = unpack("binary", packed.parts, 256)
    assert np.array_equal(restored > 0, weight >= 0)
    expected = np.abs(weight).reshape(4, 2, 128).mean(axis=2)
    np.testing.assert_allclose(packed.parts[".scales"], expected, rtol=1e-3)
    # 1 − 2/π of the energy of a normal distribution is lost: 0.60
    assert 0.5 < packed.relative_error < 0.7


def test_ternary_error_is_the_smallest_of_all_thresholds():
    weight = random_matrix(5, 128, 6)
    packed = pack("ternary", weight)
    for row in weight:
        errors = []
        for threshold in np.concatenate([[0], np.abs(row)]):
            kept = np.abs(row) > threshold
            scale = np.abs(row[kept]).mean() if kept.any() else 0.0
            errors.append(np.sum((np.sign(row) * kept * scale - row) ** 2))
        restored = unpack("ternary", pack("ternary", row[None]).parts, 128)[0]
        assert np.sum((restored - row) ** 2) <= min(errors) * (1 + 1e-5)
    assert packed.relative_error < 0.5


@pytest.mark.parametrize(("kind", "group"), GROUPS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 200.0])
def test_packing_twice_changes_nothing(kind, group, scale):
    weight = random_matrix(6, 256, 7, scale)
    once = unpack(kind, pack(kind, weight, group).parts, 256, group)
    twice = unpack(kind, pack(kind, once, group).parts, 256, group)
    tolerance = 0 if kind in LOW_BIT else 2e-3 * np.abs(once).max()
    np.testing.assert_allclose(twice, once, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("kind", "levels"), [("int4", 15), ("int8", 255)])
@pytest.mark.parametrize("group", [128, 64, 32])
def test_affine_error_is_at_most_half_a_step_and_rounding_of_scales(kind, levels, group):
    weight = random_matrix(9, 384, 11)
    packed = pack(kind, weight, group)
    restored = unpack(kind, packed.parts, 384, group).reshape(9, -1, group)
    groups = weight.reshape(9, -1, group)
    step = (groups.max(axis=2) - groups.min(axis=2)) / levels
    rounding = np.abs(groups).max(axis=2) * 2.0**-10
    assert np.all(np.abs(restored - groups).max(axis=2) <= 0.5 * step + 2 * rounding)


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_affine_of_a_constant_group_is_exact(kind, value):
    packed = pack(kind, np.full((2, 64), value, np.float32), 64)
    assert packed.lossless
    assert np.all(packed.parts[".codes"] == 0)


@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_tiny_values_underflow_to_zero_without_nan(kind, group):
    weight = random_matrix(2, 128, 2, 1e-12)
    restored = unpack(kind, pack(kind, weight, group).parts, 128, group)
    assert np.all(np.isfinite(restored)) and np.abs(restored).max() < 1e-6


@pytest.mark.parametrize("kind", ["binary", "ternary", "int4", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(kind, bad):
    weight = random_matrix(2, 128, 1)
    weight[1, 7] = bad
    with pytest.raises(BadCheckpoint, match="blocks.0.w: expected finite weights"):
        pack(kind, weight, 128, "blocks.0.w")


@pytest.mark.parametrize("kind", ["binary", "int4"])
def test_scales_beyond_float16_are_refused(kind):
    with pytest.raises(BadCheckpoint, match="float16"):
        pack(kind, random_matrix(1, 128, 1, 1e6), 128, "w")


@pytest.mark.parametrize(
    ("kind", "columns", "group"),
    [
        ("binary", 64, 128),
        ("ternary", 192, 128),
        ("binary", 128, 64),
        ("int4", 48, 32),
        ("int8", 64, 128),
        ("int4", 0, 32),
    ],
)
def test_widths_that_do_not_fit_groups_are_refused(kind, columns, group):
    with pytest.raises(BadCheckpoint, match=f"found K {columns}, group {group}"):
        pack(kind, np.ones((2, columns), np.float32), group, "w")


STORED = [
    StoredTensor("a", "f32", (5,), "x.a"),
    StoredTensor("b", "f16", (3, 4), "x.b"),
    StoredTensor("c", "conv", (2, 3, 5, 7), "x.c"),
    StoredTensor("d", "ternary", (4, 256), "x.d"),
    StoredTensor("e", "binary", (4, 256), "x.e"),
    StoredTensor("f", "int4", (4, 192), "x.f", 64),
    StoredTensor("g", "int8", (4, 96), "x.g", 32),
    StoredTensor("h", "f32", (6,), "x.h", transform=BATCH_NORM_STD, eps=1e-4),
]


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored.name)
def test_stored_parts_are_as_declared_and_come_back(stored):
    array = np.abs(random_matrix(1, int(np.prod(stored.shape)), 4)).reshape(stored.shape)
    result = stored.store(array)
    assert [(name, NAMES[part.dtype], part.shape) for name, part in result.parts.items()] == stored.parts()
    restored = stored.restore(result.parts)
    assert restored.shape == stored.shape and restored.dtype == np.float32
    error = np.linalg.norm(restored - array) / np.linalg.norm(array)
    if stored.transform:
        assert error < 1e-6
    else:
        assert error == pytest.approx(result.relative_error, rel=1e-3, abs=1e-9)
        assert result.lossless == bool(np.array_equal(restored, array))


@pytest.mark.parametrize("stored", STORED[:7], ids=lambda stored: stored.name)
def test_kind_is_recognised_from_the_shapes_of_parts(stored):
    shapes = {name.removeprefix(stored.name): shape for name, _, shape in stored.parts()}
    found = stored_like(stored.name, shapes, stored.shape)
    assert (found.kind, found.group if found.packed else 128) == (stored.kind, stored.group)


@pytest.mark.parametrize("stored", STORED[3:7], ids=lambda stored: stored.name)
def test_matrix_that_is_packed_already_is_taken_as_it_is(stored):
    given = Given(stored.kind, stored.group, pack(stored.kind, random_matrix(*stored.shape, 4), stored.group).parts)
    taken = stored.take(given)
    assert taken.lossless and taken.relative_error == 0
    assert list(taken.parts) == [name for name, _, _ in stored.parts()]
    for name, part in taken.parts.items():
        if name.endswith(".trits"):
            assert np.array_equal(unpack_trits(part, given.parts[".codes"].shape), given.parts[".codes"])
        else:
            assert part is given.parts[name.removeprefix(stored.name)]
    assert stored.take(None) is None
    assert stored.take(Given(stored.kind, 32 if stored.group == 64 else 64, given.parts)) is None
    assert stored.take(Given("int8" if stored.kind != "int8" else "int4", stored.group, given.parts)) is None
    assert replace(stored, transform=BATCH_NORM_STD).take(given) is None
    with pytest.raises(BadCheckpoint, match=f"{stored.source}: expected parts"):
        replace(stored, shape=(stored.shape[0] + 1, stored.shape[1])).take(given)


def test_convolution_weights_are_stored_with_input_channels_last():
    array = random_matrix(2, 105, 4).reshape(2, 3, 5, 7)
    part = StoredTensor("c", "conv", (2, 3, 5, 7), "c").store(array).parts["c"]
    assert part[1, 4, 6, 2] == np.float16(array[1, 2, 4, 6])


def test_values_beyond_float16_are_stored_as_float32():
    array = random_matrix(3, 4, 1)
    array[0, 0] = 70000
    result = StoredTensor("b", "f16", (3, 4), "b").store(array)
    assert result.parts["b"].dtype == np.float32 and result.lossless
    assert np.array_equal(result.parts["b"], array)


def test_latent_deviation_is_the_root_of_variance_plus_epsilon():
    stored = StoredTensor("bn.std", "f32", (3,), "bn.running_var", transform=BATCH_NORM_STD, eps=1e-4)
    variance = np.array([0.0, 0.25, 4.0], np.float32)
    np.testing.assert_allclose(stored.store(variance).parts["bn.std"], np.sqrt(variance + 1e-4), rtol=1e-6)
    with pytest.raises(BadCheckpoint, match="bn.running_var: expected variances"):
        stored.store(np.array([-1.0, 0, 0], np.float32))


def test_wrong_shape_and_infinite_values_are_refused_by_source_name():
    stored = StoredTensor("b", "f16", (3, 4), "model.b")
    with pytest.raises(BadCheckpoint, match=r"model.b: expected shape \[3, 4\], found \[4, 3\]"):
        stored.store(np.zeros((4, 3), np.float32))
    with pytest.raises(BadCheckpoint, match="model.b: expected finite"):
        stored.store(np.full((3, 4), np.inf, np.float32))
