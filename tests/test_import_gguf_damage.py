"""Damaged GGUF files, and those of other models and types: each is refused with one line."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from exporter.errors import BadCheckpoint
from exporter.sources.gguf_container import GgufFile
from exporter.sources.gguf_file import open_gguf
from tests.gguf_files import (
    LABEL,
    Q1_0,
    Q2_0,
    as_diffusers,
    blocks,
    dense,
    low_bit,
    low_bit_model,
    original_model,
    qwen3_tensors,
    refusal,
    write,
)


@pytest.fixture
def model(tmp_path) -> Path:
    return write(tmp_path / "model.gguf", original_model(64, 1, 1))


def patched(file: Path, position: int, code: str, value: int) -> Path:
    content = bytearray(file.read_bytes())
    struct.pack_into(f"<{code}", content, position, value)
    file.write_bytes(content)
    return file


def info_position(file: Path, name: str) -> int:
    """Where a matrix's number of axes stands; then two sizes (+4, +12), type (+20) and offset (+24)."""
    return file.read_bytes().index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)


@pytest.mark.parametrize(
    "content, found",
    [
        (b"", "found b''"),
        (b"GGML" + bytes(60), "expected the magic GGUF, found b'GGML'"),
        (b"GGUF\x03", "found the end of the file at 5"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 0) + bytes(64), "expected GGUF version 2 or 3, found 1"),
        (b"GGUF" + struct.pack("<IQQ", 4, 1, 0) + bytes(64), "found 4"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "found counts of 0 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "in a file of 24 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1 << 40) + bytes(64), "expected a key of at most"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 2) + b"\xff\xfe" + bytes(64), "expected a key in UTF-8"),
        (b"GGUF" + struct.pack("<IQQQcI", 3, 1, 1, 1, b"k", 77) + bytes(64), "key k: expected a known value type"),
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 1, 1, 1, b"k", 9, 9, 2) + bytes(64), "found 9"),
        (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 1, 1, 1, b"k", 9, 4, 1 << 50) + bytes(64), "cut in the middle?"),
    ],
)
def test_headers_that_are_none_are_refused(tmp_path, content, found):
    (tmp_path / "model.gguf").write_bytes(content)
    assert found in refusal(lambda: open_gguf(tmp_path / "model.gguf", LABEL))


def test_missing_files_and_big_endian_files_are_refused(tmp_path):
    assert "No such file" in refusal(lambda: open_gguf(tmp_path / "model.gguf", LABEL))
    assert "Is a directory" in refusal(lambda: open_gguf(tmp_path, LABEL))
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "flux", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("img_in.weight", dense(1, 4, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "found a big-endian file" in refusal(lambda: open_gguf(tmp_path / "model.gguf", LABEL))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    tensors, _ = low_bit_model(Q2_0, 2, 64, 128, 128)
    content = write(tmp_path / "model.gguf", tensors).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 6000, 97), *range(6000, len(content), 40_000), len(content) - 65]:
        cut.write_bytes(content[:length])
        message = refusal(lambda: open_gguf(cut, LABEL))
        assert length < 24 or "cut in the middle?" in message or "counts of" in message, message
    cut.write_bytes(content + bytes(64))
    assert "up to the end of the file" in refusal(lambda: open_gguf(cut, LABEL))


def test_a_file_that_shrinks_after_opening_is_refused(model):
    source = open_gguf(model, LABEL)
    model.write_bytes(model.read_bytes()[:9000])
    assert "found the end of the file" in refusal(lambda: source.tensor("norm_out.linear.weight"))
    model.unlink()
    assert "No such file" in refusal(lambda: source.tensor("norm_out.linear.weight"))


def test_no_flipped_byte_of_the_header_ends_in_anything_but_a_line(model):
    content = model.read_bytes()
    end = GgufFile(model, LABEL).tensors["img_in.weight"].start
    choose = random.Random(4)
    opened = 0
    for _ in range(250):
        damaged = bytearray(content)
        damaged[choose.randrange(end)] ^= 1 << choose.randrange(8)
        model.write_bytes(damaged)
        try:
            open_gguf(model, LABEL)
            opened += 1
        except BadCheckpoint as problem:
            assert str(problem).startswith(f"{LABEL}: ") and "\n" not in str(problem)
    assert opened < 40  # padding, and keys that are not used


@pytest.mark.parametrize(
    "type_id, found",
    [(34, "TQ1_0"), (35, "TQ2_0"), (143, "PTQ1_0"), (12, "Q4_K"), (2, "Q4_0"), (39, "MXFP4"), (999, "type id 999")],
)
def test_other_types_are_refused_by_name(model, type_id, found):
    patched(model, info_position(model, "txt_in.weight") + 20, "I", type_id)
    message = refusal(lambda: open_gguf(model, LABEL))
    assert "tensor txt_in.weight: expected F16, BF16, F32, Q8_0, Q1_0 or Q2_0" in message
    assert f"found {found}," in message and "use one of those" in message


def test_every_type_of_the_library_is_read_or_refused_by_name(model):
    original = model.read_bytes()
    readable = {GgmlType.F32, GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q1_0, GgmlType.NVFP4}
    for kind in set(GgmlType) - readable:
        model.write_bytes(original)
        patched(model, info_position(model, "txt_in.weight") + 20, "I", kind)
        assert f"found {kind.name}," in refusal(lambda: open_gguf(model, LABEL))


def test_id_40_is_told_apart_by_its_length(tmp_path):
    tensors = original_model(64, 1, 1)
    tensors["txt_in.weight"] = (np.zeros(64 * 36, np.uint8), GgmlType.NVFP4, (64, 64))
    message = refusal(lambda: open_gguf(write(tmp_path / "model.gguf", tensors), LABEL))
    assert "tensor txt_in.weight" in message and "found NVFP4," in message


@pytest.mark.parametrize(
    "name, offset, code, value, found",
    [
        ("txt_in.weight", 24, "Q", 1 << 40, "expected data at byte 109951162"),
        ("txt_in.weight", 24, "Q", 0, "found 0 up to tensor"),
        ("txt_in.weight", 24, "Q", 4100, "expected an offset of a multiple of 32, found 4100"),
        ("img_in.weight", 24, "Q", 32, "expected offset 0, found 32"),
        ("img_in.weight", 4, "Q", 15, "tensor img_in.weight: expected 3840 (F32) bytes for [64, 15], found 4096"),
        ("img_in.weight", 4, "Q", 0, "expected sizes of at least 1, found shape [64, 0]"),
        ("img_in.weight", 4, "Q", 1 << 63, "found 4096 up to tensor txt_in.weight"),
        ("img_in.weight", 0, "I", 9, "expected 1 to 4 axes, found 9"),
        ("img_in.weight", 20, "I", 8, "expected rows of a multiple of 32 values for Q8_0, found shape [64, 16]"),
        ("img_in.weight", 20, "I", 42, "expected rows of a multiple of 64 values for Q2_0"),
        (
            "time_in.in_layer.weight",
            20,
            "I",
            42,
            "expected 4608 (Q2_0) or 4352 (Q2_0) bytes for [64, 256], found 65536",
        ),
    ],
)
def test_tensors_that_lie_about_their_bytes_are_refused(model, name, offset, code, value, found):
    patched(model, info_position(model, name) + offset, code, value)
    assert found in refusal(lambda: open_gguf(model, LABEL))


def test_a_length_that_fits_both_meanings_of_id_42_is_refused(tmp_path):
    tensors = as_diffusers(original_model(64, 1, 1))
    codes, scales = low_bit(1, 3, 128, 3, 64, 128)
    tensors["proj_out.weight"] = (blocks(codes, scales, 2), Q2_0, codes.shape)
    message = refusal(lambda: open_gguf(write(tmp_path / "model.gguf", tensors), LABEL))
    assert "tensor proj_out.weight: expected a byte length that tells groups of 64 from groups of 128" in message


def test_two_meanings_of_id_42_in_a_file_are_refused(tmp_path):
    tensors = as_diffusers(original_model(64, 1, 1))
    for name, group in (("x_embedder.weight", 64), ("proj_out.weight", 128)):
        codes, scales = low_bit(1, 64, 256, 3, group, 128)
        tensors[name] = (blocks(codes, scales, 2), Q2_0, codes.shape)
    message = refusal(lambda: open_gguf(write(tmp_path / "model.gguf", tensors), LABEL))
    assert "groups of 64 as in tensor" in message or "groups of 128 as in tensor" in message


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_scales_that_are_not_finite_are_refused(tmp_path, bad):
    tensors = original_model(128, 1, 1)
    codes, scales = low_bit(1, 384, 128, 2, 128)
    scales[130, 0] = bad
    tensors["double_blocks.0.img_attn.qkv.weight"] = (blocks(codes, scales, 1), Q1_0, codes.shape)
    source = open_gguf(write(tmp_path / "model.gguf", tensors), LABEL)
    message = refusal(lambda: source.given("transformer_blocks.0.attn.to_k.weight"))
    assert f"tensor double_blocks.0.img_attn.qkv.weight: expected finite scales, found 1 like {bad}" in message
    assert source.given("transformer_blocks.0.attn.to_q.weight") is not None


def test_missing_and_unknown_tensors_are_refused(tmp_path):
    whole = original_model(64, 2, 2)
    for i, missing in enumerate(
        ("img_in.weight", "double_blocks.0.txt_attn.qkv.weight", "single_blocks.1.linear1.weight")
    ):
        tensors = {name: array for name, array in whole.items() if name != missing}
        file = write(tmp_path / f"{i}.gguf", tensors)
        assert f"expected tensor {missing}, found {len(tensors)} others" in refusal(lambda: open_gguf(file, LABEL))  # noqa: B023
    holed = {name: array for name, array in whole.items() if not name.startswith("single_blocks.0.")}
    file = write(tmp_path / "holed.gguf", holed)
    assert "expected tensor single_blocks.0.linear1.weight" in refusal(lambda: open_gguf(file, LABEL))
    file = write(tmp_path / "unknown.gguf", whole | {"double_blocks.0.img_attn.qkv.bias": dense(1, 192)})
    assert "expected tensors of FLUX.2-klein, found double_blocks.0.img_attn.qkv.bias" in refusal(
        lambda: open_gguf(file, LABEL)
    )
    file = write(tmp_path / "strange.gguf", {"conv_in.weight": dense(1, 4, 32)})
    assert "expected tensors of FLUX.2-klein or Qwen3, found conv_in.weight" in refusal(lambda: open_gguf(file, LABEL))
    source = open_gguf(write(tmp_path / "whole.gguf", whole), LABEL)
    for method in (source.tensor, source.shape, source.label, source.given):
        assert "expected tensor nothing, found" in refusal(lambda: method("nothing"))  # noqa: B023


def test_shapes_that_cannot_be_split_are_refused(tmp_path):
    for i, (name, shape) in enumerate(
        [
            ("double_blocks.0.img_attn.qkv.weight", (191, 64)),
            ("final_layer.adaLN_modulation.1.weight", (127, 64)),
            ("final_layer.adaLN_modulation.1.weight", (128,)),
            ("img_in.weight", (4, 4, 4)),
        ]
    ):
        file = write(tmp_path / f"{i}.gguf", original_model(64, 1, 1) | {name: dense(1, *shape)})
        message = refusal(lambda: open_gguf(file, LABEL))  # noqa: B023
        assert f"tensor {name}: expected" in message and f"found shape {list(shape)}" in message


def test_names_given_twice_are_refused(tmp_path):
    tensors = original_model(64, 1, 1)
    both = tensors | {"model.diffusion_model.img_in.weight": tensors["img_in.weight"]}
    file = write(tmp_path / "both.gguf", both)
    assert "expected tensor img_in.weight once" in refusal(lambda: open_gguf(file, LABEL))
    file = write(tmp_path / "twice.gguf", tensors | {"img_im.weight": tensors["img_in.weight"]})
    file.write_bytes(file.read_bytes().replace(b"img_im", b"img_in"))
    assert "expected tensor names once, found img_in.weight twice" in refusal(lambda: open_gguf(file, LABEL))


def test_other_models_and_parts_of_models_are_refused(tmp_path):
    written, _ = qwen3_tensors(1)
    file = write(tmp_path / "llama.gguf", written, arch="llama")
    assert "expected architecture qwen3, found 'llama'" in refusal(lambda: open_gguf(file, LABEL))
    file = write(tmp_path / "missing.gguf", {k: v for k, v in written.items() if "ffn_up" not in k}, arch="qwen3")
    assert "expected tensor blk.0.ffn_up.weight" in refusal(lambda: open_gguf(file, LABEL))
    file = write(tmp_path / "part.gguf", written, arch="qwen3", keys=lambda writer: writer.add_uint16("split.count", 3))
    assert "expected a whole model, found one of 3 parts" in refusal(lambda: open_gguf(file, LABEL))
    file = write(
        tmp_path / "odd.gguf", written, arch="qwen3", keys=lambda writer: writer.add_uint32("general.alignment", 48)
    )
    assert "expected general.alignment to be a power of two, found 48" in refusal(lambda: open_gguf(file, LABEL))
    file = write(
        tmp_path / "text.gguf", written, arch="qwen3", keys=lambda writer: writer.add_string("general.alignment", "32")
    )
    assert "key general.alignment: expected a value of type int, found '32'" in refusal(lambda: open_gguf(file, LABEL))
