"""Opening checkpoints: what is read, and every kind of damage as one line that names file and tensor."""

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.checkpoint import Checkpoint
from exporter.configs import choose_layers, picture_sizes, text_rotary
from exporter.errors import BadArguments, BadCheckpoint
from exporter.tensorfile import TensorFile
from tests.tiny import make_pipeline

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("checkpoint") / "tiny", double=1, single=1)


@pytest.fixture
def damaged(pipeline, tmp_path) -> Path:
    """A copy of the pipeline to break."""
    return shutil.copytree(pipeline, tmp_path / "damaged")


def edit_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key)
        else:
            content[key] = value
    path.write_text(json.dumps(content))


def write_raw(path: Path, header: object, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def refusal(action) -> str:
    """The one line that `action` refuses with."""
    with pytest.raises(BadCheckpoint) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and caught.value.exit_code == 3
    return message


def test_tensors_are_those_of_the_files(pipeline):
    checkpoint = Checkpoint(pipeline)
    for component, file in (("transformer", TRANSFORMER), ("text_encoder", ENCODER)):
        expected = load_file(pipeline / file)
        assert checkpoint.names(component) == sorted(expected)
        for name, tensor in expected.items():
            assert checkpoint.shape(component, name) == tuple(tensor.shape)
            found = checkpoint.tensor(component, name)
            assert found.dtype == np.float32 and np.array_equal(found, tensor.numpy())
    assert {file.name for file in checkpoint.tokenizer_files} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_widened(damaged, dtype):
    original = load_file(damaged / TRANSFORMER)
    save_file({name: tensor.to(dtype) for name, tensor in original.items()}, damaged / TRANSFORMER)
    checkpoint = Checkpoint(damaged)
    for name, tensor in original.items():
        assert np.array_equal(checkpoint.tensor("transformer", name), tensor.to(dtype).float().numpy())


def test_bfloat16_is_widened_without_a_second_copy(tmp_path):
    path = tmp_path / "x.safetensors"
    values = torch.randn(3000, 1001, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"a": values, "b": torch.tensor(2.5).bfloat16()}, path)
    file = TensorFile(path, "x")
    tracemalloc.start()
    found = file.read_f32("a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, values.float().numpy()) and file.read_f32("b") == 2.5
    assert peak < 1.25 * found.nbytes


def test_sharded_files_are_followed_by_their_index(damaged):
    original = load_file(damaged / ENCODER)
    names = sorted(original)
    weight_map = {name: f"model-{1 + (i % 2):05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({n: original[n] for n in names if weight_map[n] == file}, damaged / "text_encoder" / file)
    (damaged / ENCODER).unlink()
    index = damaged / "text_encoder/model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    checkpoint = Checkpoint(damaged)
    assert checkpoint.names("text_encoder") == names
    assert np.array_equal(checkpoint.tensor("text_encoder", names[3]), original[names[3]].numpy())

    weight_map["model.extra.weight"] = weight_map[names[0]]
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert "model-00001-of-00002.safetensors: expected tensor model.extra.weight" in refusal(
        lambda: Checkpoint(damaged)
    )
    weight_map["model.extra.weight"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert "expected a file name in the same folder" in refusal(lambda: Checkpoint(damaged))
    weight_map["model.extra.weight"] = "model-00003-of-00003.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert "model-00003-of-00003.safetensors" in refusal(lambda: Checkpoint(damaged))


def test_encoder_names_without_model_prefix_are_accepted(damaged):
    original = load_file(damaged / ENCODER)
    save_file({name.removeprefix("model."): tensor for name, tensor in original.items()}, damaged / ENCODER)
    edit_json(damaged / "text_encoder/config.json", architectures=["Qwen3Model"])
    checkpoint = Checkpoint(damaged)
    assert checkpoint.names("text_encoder") == sorted(original)
    name = "model.embed_tokens.weight"
    assert np.array_equal(checkpoint.tensor("text_encoder", name), original[name].numpy())


def test_folder_that_is_missing_or_no_pipeline(tmp_path):
    assert "found nothing" in refusal(lambda: Checkpoint(tmp_path / "missing"))
    (tmp_path / "file").write_text("x")
    assert "found a file" in refusal(lambda: Checkpoint(tmp_path / "file"))
    assert "model_index.json of a Flux2KleinPipeline" in refusal(lambda: Checkpoint(tmp_path))


@pytest.mark.parametrize("file", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_json_that_cannot_be_read(damaged, file, content):
    (damaged / file).write_bytes(content)
    assert file in refusal(lambda: Checkpoint(damaged))


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "found 'StableDiffusionPipeline'"),
        (
            "transformer/config.json",
            {"_class_name": "FluxTransformer2DModel"},
            "expected class Flux2Transformer2DModel",
        ),
        (
            "text_encoder/config.json",
            {"architectures": ["LlamaForCausalLM"]},
            "Qwen3ForCausalLM or Qwen3Model",
        ),
        ("text_encoder/config.json", {"architectures": None}, "found None"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "expected class AutoencoderKLFlux2"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "DDIMScheduler"},
            "FlowMatchEulerDiscreteScheduler",
        ),
        ("transformer/config.json", {"num_attention_heads": None}, "expected num_attention_heads"),
        ("transformer/config.json", {"num_layers": -1}, "num_layers"),
        ("transformer/config.json", {"num_layers": "two"}, "num_layers"),
        ("transformer/config.json", {"guidance_embeds": True}, "guidance_embeds False"),
        ("transformer/config.json", {"axes_dims_rope": [16, 16, 16]}, "axes_dims_rope"),
        ("transformer/config.json", {"axes_dims_rope": [16, 16, 16, 32]}, "axes_dims_rope"),
        ("transformer/config.json", {"in_channels": 64}, "in_channels"),
        ("text_encoder/config.json", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "'yarn'"),
        ("text_encoder/config.json", {"rope_parameters": None}, "rope_theta"),
        ("text_encoder/config.json", {"vocab_size": 0}, "vocab_size"),
        ("vae/config.json", {"block_out_channels": 128}, "block_out_channels"),
        ("vae/config.json", {"patch_size": [1, 1]}, "patch_size [2, 2]"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("scheduler/scheduler_config.json", {"time_shift_type": "cubic"}, "found 'cubic'"),
    ],
)
def test_config_that_is_unknown_or_inconsistent(damaged, file, changes, words):
    edit_json(damaged / file, **changes)
    message = refusal(lambda: Checkpoint(damaged))
    assert file in message and words in message


def test_component_without_weights_or_tokenizer(damaged):
    (damaged / "tokenizer/tokenizer.json").rename(damaged / "tokenizer/other.json")
    assert "tokenizer.json, or vocab.json and merges.txt" in refusal(lambda: Checkpoint(damaged))
    (damaged / "tokenizer/other.json").rename(damaged / "tokenizer/tokenizer.json")
    (damaged / TRANSFORMER).unlink()
    assert "transformer: expected diffusion_pytorch_model.safetensors" in refusal(lambda: Checkpoint(damaged))


def test_missing_tensor_and_wrong_shape_name_file_and_tensor(damaged):
    checkpoint = Checkpoint(damaged)
    name = "x_embedder.weight"
    message = refusal(lambda: checkpoint.require("transformer", name, (7, 5)))
    assert message == (
        f"{TRANSFORMER}: tensor {name}: expected shape [7, 5] from transformer/config.json, found [128, 16]"
    )
    for action in (checkpoint.tensor, checkpoint.shape):
        assert f"{TRANSFORMER}: expected tensor nope.weight" in refusal(
            lambda action=action: action("transformer", "nope.weight")
        )


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1, -4096])
def test_truncated_file(damaged, keep):
    path = damaged / TRANSFORMER
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(lambda: Checkpoint(damaged))
    assert TRANSFORMER in message and "truncated" in message


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LYING = {
    "length beyond the file": ({"a": A}, b"\0" * 8, 10**12, "truncated"),
    "length beyond 64 bits of sense": ({"a": A}, b"\0" * 8, 2**64 - 1, "truncated"),
    "no JSON": (b"\x00\x01{", b"", None, "expected a JSON header"),
    "nested beyond reason": (b"[" * 100_000, b"", None, "expected a JSON header"),
    "no object": ([], b"", None, "expected a JSON object"),
    "offsets outside": (
        {"a": {**A, "data_offsets": [8, 16]}},
        b"\0" * 8,
        None,
        "tensor a: expected data up to byte",
    ),
    "offsets backwards": (
        {"a": {**A, "data_offsets": [8, 0]}},
        b"\0" * 8,
        None,
        "tensor a: expected data_offsets",
    ),
    "negative offset": (
        {"a": {**A, "data_offsets": [-8, 0]}},
        b"\0" * 8,
        None,
        "tensor a: expected data_offsets",
    ),
    "three offsets": (
        {"a": {**A, "data_offsets": [0, 4, 8]}},
        b"\0" * 8,
        None,
        "tensor a: expected data_offsets",
    ),
    "size unlike dtype and shape": (
        {"a": {**A, "shape": [3]}},
        b"\0" * 8,
        None,
        "expected 12 bytes for F32 [3]",
    ),
    "unknown dtype": (
        {"a": {**A, "dtype": "F4"}},
        b"\0" * 8,
        None,
        "tensor a: expected a known dtype, found 'F4'",
    ),
    "dtype no string": ({"a": {**A, "dtype": ["F32"]}}, b"\0" * 8, None, "tensor a: expected a known dtype"),
    "negative size": ({"a": {**A, "shape": [-1, -2]}}, b"\0" * 8, None, "tensor a: expected a list of sizes"),
    "fractional size": ({"a": {**A, "shape": [2.0]}}, b"\0" * 8, None, "tensor a: expected a list of sizes"),
    "missing key": (
        {"a": {"dtype": "F32", "shape": [2]}},
        b"\0" * 8,
        None,
        "expected dtype, shape and data_offsets",
    ),
    "overlap": (
        {"a": A, "b": {**A, "data_offsets": [4, 12]}},
        b"\0" * 12,
        None,
        "tensor b: expected data right after a, found an overlap",
    ),
    "hole": ({"a": A, "b": {**A, "data_offsets": [12, 20]}}, b"\0" * 20, None, "found a hole"),
    "bytes left over": ({"a": A}, b"\0" * 12, None, "belong to no tensor"),
    "name twice": (b'{"a": {}, "a": {}}', b"", None, "found a twice"),
}


@pytest.mark.parametrize("case", LYING)
def test_lying_header(tmp_path, case):
    header, data, length, words = LYING[case]
    path = tmp_path / "x.safetensors"
    write_raw(path, header, data, length)
    message = refusal(lambda: TensorFile(path, "part/x.safetensors"))
    assert message.startswith("part/x.safetensors: ") and words in message


def test_tensor_of_integers_is_refused_as_weights(tmp_path):
    path = tmp_path / "x.safetensors"
    write_raw(path, {"a": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}}, b"\1" + b"\0" * 7)
    file = TensorFile(path, "x")
    assert file.read("a") == 1
    assert "x: tensor a: expected a dtype among F64" in refusal(lambda: file.read_f32("a"))


def test_empty_tensor_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    write_raw(path, {"a": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}}, b"")
    assert TensorFile(path, "x").read_f32("a").shape == (0, 4)


def test_layers_are_kleins_unless_asked_for(pipeline):
    configs = Checkpoint(pipeline).configs
    assert choose_layers(configs, (1, 2, 3)) == (1, 2, 3)
    klein = {
        "text_encoder": {"num_hidden_layers": 36, "hidden_size": 2560},
        "transformer": {"joint_attention_dim": 7680},
    }
    assert choose_layers(klein, None) == (9, 18, 27)
    for asked, words in [
        (None, "pass --encoder-layers"),
        ((1, 2, 9), "0..4"),
        ((1, 2), "expected 3 layers"),
        ((), "found none"),
        ((-1, 1, 2), "0..4"),
    ]:
        with pytest.raises(BadArguments, match="--encoder-layers") as caught:
            choose_layers(configs, asked)
        assert words in str(caught.value)


def test_rotary_base_is_found_in_old_and_new_configs(pipeline):
    configs = Checkpoint(pipeline).configs
    assert text_rotary(configs) == {"head_size": 64, "theta": 10000.0}
    old = {"text_encoder": {"rope_theta": 1000000, "rope_scaling": None, "head_dim": 128}}
    assert text_rotary(old) == {"head_size": 128, "theta": 1000000}


def test_sizes_follow_the_autoencoder():
    small = {"vae": {"sample_size": 256, "block_out_channels": [32, 64, 128, 128]}}
    assert picture_sizes(small) == {
        "multiple": 16,
        "minimum": 64,
        "maximum": 1024,
        "default": [256, 256],
        "presets": [[256, 256], [384, 256], [256, 384], [384, 384], [512, 512]],
    }
    large = picture_sizes({"vae": {"sample_size": 1024, "block_out_channels": [128, 256, 512, 512]}})
    assert large["default"] == [512, 512] and [1248, 832] in large["presets"] and large["maximum"] == 2048
    for width, height in large["presets"]:
        assert width % 16 == 0 and height % 16 == 0
