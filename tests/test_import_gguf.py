"""GGUF files, written by the gguf library: names, values, and packed matrices bit for bit."""

import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from gguf import GGMLQuantizationType as GgmlType

from exporter.packing import pack
from exporter.sources.gguf_container import GgufFile
from exporter.sources.gguf_file import open_gguf
from tests.gguf_files import (
    LABEL,
    Q1_0,
    Q1_0_EARLY,
    Q2_0,
    Q2_0_128,
    as_diffusers,
    blocks,
    dense,
    low_bit,
    low_bit_model,
    original_model,
    quantized,
    qwen3_tensors,
    words,
    write,
)


def assert_equal_tensors(source, expected: dict[str, np.ndarray]) -> None:
    assert source.names() == sorted(expected)
    for name, array in expected.items():
        found = source.tensor(name)
        assert source.shape(name) == array.shape and source.label(name) == LABEL
        assert found.dtype == np.float32 and np.array_equal(found, array), name


@pytest.mark.parametrize("width, double, single", [(128, 1, 1), (256, 2, 3), (64, 1, 0), (64, 0, 1)])
def test_the_original_names_become_those_of_diffusers(tmp_path, width, double, single):
    tensors = original_model(width, double, single)
    expected = as_diffusers(tensors)
    source = open_gguf(write(tmp_path / "model.gguf", tensors), LABEL)
    assert_equal_tensors(source, expected)
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=64,
            num_attention_heads=width // 64,
            joint_attention_dim=96,
            axes_dims_rope=(16, 16, 16, 16),
            guidance_embeds=False,
        )
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == {
        name: source.shape(name) for name in source.names()
    }
    assert all(source.given(name) is None for name in source.names())


def test_the_prefix_and_diffusers_own_names_are_taken(tmp_path):
    tensors = original_model()
    expected = as_diffusers(tensors)
    prefixed = {f"model.diffusion_model.{name}": array for name, array in tensors.items()}
    assert_equal_tensors(open_gguf(write(tmp_path / "prefixed.gguf", prefixed), LABEL), expected)
    # Under diffusers' names nothing is exchanged or split.
    assert_equal_tensors(open_gguf(write(tmp_path / "diffusers.gguf", expected), LABEL), expected)


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
@pytest.mark.parametrize("kind", [GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0, GgmlType.F32])
def test_dense_types_are_what_the_library_reads(tmp_path, kind, alignment):
    shapes = {"x_embedder.weight": (5, 32), "proj_out.weight": (3, 96), "norm_out.linear.weight": (70, 256)}
    tensors = dict(as_diffusers(original_model(64, 1, 1)))
    stored = {name: quantized(30 * dense(i, *shape), kind) for i, (name, shape) in enumerate(shapes.items())}
    file = write(tmp_path / "model.gguf", tensors | stored, alignment=alignment)
    source = open_gguf(file, LABEL)
    for name, (raw, _, shape) in stored.items():
        assert source.shape(name) == shape and source.given(name) is None
        assert np.array_equal(source.tensor(name), gguf.quants.dequantize(raw, kind).reshape(shape))
    reader = gguf.GGUFReader(file)
    found = GgufFile(file, LABEL).tensors
    assert {tensor.name: int(tensor.data_offset) for tensor in reader.tensors} == {
        name: tensor.start for name, tensor in found.items()
    }


# type id, bits, group, values that share a scale
LOW_BIT = {
    "Q1_0": (Q1_0, 1, 128, 128),
    "Q1_0 in groups of 32": (Q1_0_EARLY, 1, 32, 128),
    "Q2_0 in groups of 64": (Q2_0, 2, 64, 128),
    "Q2_0 in groups of 128": (Q2_0, 2, 128, 128),
    "Q2_0 under id 142": (Q2_0_128, 2, 128, 128),
}


@pytest.mark.parametrize("width", [128, 256])
@pytest.mark.parametrize("name", LOW_BIT)
def test_packed_matrices_come_through_bit_for_bit(tmp_path, name, width):
    type_id, bits, group, same_per = LOW_BIT[name]
    tensors, packed = low_bit_model(type_id, bits, group, same_per, width)
    source = open_gguf(write(tmp_path / "model.gguf", tensors), LABEL)
    plain = {name: tensor for name, tensor in tensors.items() if name not in packed}
    codes = as_diffusers(plain | {name: codes for name, (codes, _) in packed.items()})
    scales = as_diffusers(plain | {name: scales for name, (_, scales) in packed.items()})
    handed = 0
    for target in source.names():
        given = source.given(target)
        if codes[target].dtype != np.uint8:
            assert given is None
            continue
        handed += 1
        kept = scales[target][:, :: 128 // group]
        assert (given.kind, given.group) == ("binary" if bits == 1 else "ternary", 128)
        assert set(given.parts) == {".codes", ".scales"}
        assert given.parts[".codes"].dtype == np.uint32 and given.parts[".scales"].dtype == np.float16
        assert np.array_equal(given.parts[".codes"], words(codes[target], bits)), target
        assert np.array_equal(given.parts[".scales"].view(np.uint16), kept.view(np.uint16)), target
        signs = codes[target].astype(np.float32) * (2 if bits == 1 else 1) - 1
        values = signs * np.repeat(kept, 128, axis=1).astype(np.float32)
        assert np.array_equal(source.tensor(target), values), target
        again = pack(given.kind, values)  # the way of matrices that come as f32
        assert again.lossless and np.array_equal(again.parts[".codes"], given.parts[".codes"])
        assert np.array_equal(again.parts[".scales"], given.parts[".scales"])
    assert handed == 12 + 2 + 1


@pytest.mark.parametrize("type_id, bits, group", [(Q1_0_EARLY, 1, 32), (Q2_0, 2, 64)])
@pytest.mark.parametrize("columns", [256, 320])
def test_scales_finer_than_128_come_as_values_only(tmp_path, type_id, bits, group, columns):
    codes, scales = low_bit(5, 200, columns, bits + 1, group)
    tensors = as_diffusers(original_model(64, 1, 1))
    tensors["proj_out.weight"] = (blocks(codes, scales, bits), type_id, codes.shape)
    source = open_gguf(write(tmp_path / "model.gguf", tensors), LABEL)
    assert source.given("proj_out.weight") is None
    signs = codes.astype(np.float32) * (2 if bits == 1 else 1) - 1
    assert np.array_equal(source.tensor("proj_out.weight"), signs * np.repeat(scales, group, axis=1).astype(np.float32))


@pytest.mark.parametrize("type_id, group", [(Q2_0, 64), (Q2_0, 128), (Q2_0_128, 128)])
def test_a_code_of_3_is_twice_the_scale_and_comes_as_values_only(tmp_path, type_id, group):
    codes, scales = low_bit(6, 64, 256, 3, group, 128)
    codes[63, 255] = 3
    tensors = as_diffusers(original_model(64, 1, 1))
    tensors["proj_out.weight"] = (blocks(codes, scales, 2), type_id, codes.shape)
    source = open_gguf(write(tmp_path / "model.gguf", tensors), LABEL)
    assert source.given("proj_out.weight") is None
    assert source.tensor("proj_out.weight")[63, 255] == 2 * np.float32(scales[63, -1])


def test_short_tensors_follow_the_others_in_what_id_42_means(tmp_path):
    for group in (64, 128):
        tensors = as_diffusers(original_model(64, 1, 1))
        for name, rows in (("x_embedder.weight", 1), ("proj_out.weight", 512)):
            codes, scales = low_bit(rows, rows, 128, 3, group, 128)
            tensors[name] = (blocks(codes, scales, 2), Q2_0, codes.shape)
        source = open_gguf(write(tmp_path / f"{group}.gguf", tensors), LABEL)
        codes, scales = low_bit(1, 1, 128, 3, group, 128)
        given = source.given("x_embedder.weight")
        assert np.array_equal(given.parts[".codes"], words(codes, 2))
        assert np.array_equal(given.parts[".scales"], scales[:, :1])


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    writer.add_token_list([f"token {i} é" for i in range(320)])
    writer.add_token_types([1] * 320)
    writer.add_array("test.floats", [1.5, 2.5])
    writer.add_array("test.flags", [True, False])
    writer.add_chat_template("{{ messages }}" * 10_000)
    writer.add_rope_freq_base(1e6)
    writer.add_bool("test.flag", True)
    writer.add_uint64("test.large", 1 << 40)


def test_a_qwen3_text_encoder_gets_the_names_of_transformers(tmp_path):
    written, values = qwen3_tensors()
    file = write(tmp_path / "model.gguf", written, arch="qwen3", keys=add_vocabulary)
    assert_equal_tensors(open_gguf(file, LABEL), values)
    for missing_and_fine in ("output.weight", "output_norm.weight"):
        written.pop(missing_and_fine)
    names = open_gguf(write(tmp_path / "short.gguf", written, arch="qwen3"), LABEL).names()
    assert names == sorted(set(values) - {"lm_head.weight", "model.norm.weight"})


def test_reading_needs_the_memory_of_one_tensor(tmp_path):
    tensors = as_diffusers(original_model(64, 1, 1))
    large = [name for name in tensors if tensors[name].ndim == 2][:4]
    for i, name in enumerate(large):
        codes, scales = low_bit(i, 2048, 2048, 3, 128)
        tensors[name] = (blocks(codes, scales, 2), Q2_0, codes.shape)
    file = write(tmp_path / "model.gguf", tensors)
    tracemalloc.start()
    try:
        source = open_gguf(file, LABEL)
        assert tracemalloc.get_traced_memory()[1] < 1e6
        for name in large:
            assert source.given(name) is not None
        assert tracemalloc.get_traced_memory()[1] < 6e6  # 1.1 MB packed, and a block being read
    finally:
        tracemalloc.stop()
    for i, name in enumerate(large):  # read in more than one block
        codes, scales = low_bit(i, 2048, 2048, 3, 128)
        parts = source.given(name).parts
        assert np.array_equal(parts[".codes"], words(codes, 2)) and np.array_equal(parts[".scales"], scales)
    signs = codes.astype(np.float32) - 1
    assert np.array_equal(source.tensor(name), signs * np.repeat(scales, 128, axis=1).astype(np.float32))
