"""Small GGUF files, written by the gguf library, with names and shapes from diffusers and transformers."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from gguf import GGMLQuantizationType as GgmlType
from transformers import Qwen3Config, Qwen3ForCausalLM

from exporter.errors import BadCheckpoint

LABEL = "transformer/model.gguf"
Q1_0_EARLY, Q1_0, Q2_0, Q2_0_128 = 40, 41, 42, 142


def write(
    path: Path, tensors: dict, arch: str = "flux", alignment: int | None = None, keys=lambda writer: None
) -> Path:
    """Write name -> f32 array, or name -> (bytes u8, type id, shape), with the library's writer."""
    writer = gguf.GGUFWriter(path, arch)
    if alignment:
        writer.add_custom_alignment(alignment)
    keys(writer)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            raw, type_id, shape = tensor
            # As i8, because the library takes the shape of u8 from its own table, which lacks some types.
            writer.add_tensor(name, raw.view(np.int8), raw_shape=shape, raw_dtype=type_id)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(values: np.ndarray, kind: GgmlType) -> tuple:
    return gguf.quants.quantize(values, kind).view(np.uint8), kind, values.shape


def low_bit(seed: int, rows: int, columns: int, levels: int, group: int, same_per: int | None = None) -> tuple:
    """Random codes u8[rows, columns] and scales f16[rows, columns/group], equal inside `same_per` values."""
    rng = np.random.default_rng(seed)
    same_per = same_per or group
    scales = rng.uniform(0.001, 0.06, (rows, columns // same_per)).astype(np.float16)
    return rng.integers(0, levels, (rows, columns), np.uint8), np.repeat(scales, same_per // group, axis=1)


def blocks(codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The bytes of Q1_0 and Q2_0: per group a float16 scale, then the codes from the lowest bit up."""
    groups = codes.reshape(*scales.shape, -1, 8 // bits).astype(np.uint32)
    packed = (groups << np.arange(0, 8, bits)).sum(axis=-1).astype(np.uint8)
    return np.concatenate([scales[..., None].view(np.uint8), packed], axis=-1).reshape(-1)


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """The u32 words of the bundle, computed apart from the exporter."""
    groups = codes.reshape(len(codes), -1, 32 // bits).astype(np.uint64)
    return (groups << np.arange(0, 32, bits, dtype=np.uint64)).sum(axis=-1).astype(np.uint32)


def dense(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def original_shapes(width: int, double: int, single: int, channels: int = 16, joint: int = 96) -> dict[str, tuple]:
    """The original release's tensor names with the shapes of a small model (mlp ratio 3, heads of 64)."""
    shapes = {
        "img_in.weight": (width, channels),
        "txt_in.weight": (width, joint),
        "time_in.in_layer.weight": (width, 256),
        "time_in.out_layer.weight": (width, width),
        "double_stream_modulation_img.lin.weight": (6 * width, width),
        "double_stream_modulation_txt.lin.weight": (6 * width, width),
        "single_stream_modulation.lin.weight": (3 * width, width),
        "final_layer.linear.weight": (channels, width),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
    }
    for i in range(double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            shapes[f"{block}_attn.qkv.weight"] = (3 * width, width)
            shapes[f"{block}_attn.proj.weight"] = (width, width)
            shapes[f"{block}_attn.norm.query_norm.scale"] = shapes[f"{block}_attn.norm.key_norm.scale"] = (64,)
            shapes[f"{block}_mlp.0.weight"] = (6 * width, width)
            shapes[f"{block}_mlp.2.weight"] = (width, 3 * width)
    for i in range(single):
        shapes[f"single_blocks.{i}.linear1.weight"] = (9 * width, width)
        shapes[f"single_blocks.{i}.linear2.weight"] = (width, 4 * width)
        shapes[f"single_blocks.{i}.norm.query_norm.scale"] = (64,)
        shapes[f"single_blocks.{i}.norm.key_norm.scale"] = (64,)
    return shapes


def original_model(width: int = 128, double: int = 1, single: int = 1) -> dict[str, np.ndarray]:
    return {name: dense(i, *shape) for i, (name, shape) in enumerate(original_shapes(width, double, single).items())}


def as_diffusers(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as diffusers' own converter makes them."""
    converted = convert_flux2_transformer_checkpoint_to_diffusers(
        {name: torch.from_numpy(array) for name, array in tensors.items()}
    )
    return {name: tensor.numpy() for name, tensor in converted.items()}


def refusal(action) -> str:
    """The one line that `action` refuses with."""
    with pytest.raises(BadCheckpoint) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and message.startswith(f"{LABEL}: ")
    return message


def low_bit_model(type_id: int, bits: int, group: int, same_per: int, width: int) -> tuple[dict, dict]:
    """A small model in which all matrices of blocks are packed: its tensors to write, and codes and scales."""
    tensors, packed = original_model(width, 1, 1), {}
    for i, (name, array) in enumerate(tensors.items()):
        if "blocks" in name and array.ndim == 2 or "adaLN" in name:
            codes, scales = packed[name] = low_bit(i, *array.shape, bits + 1, group, same_per)
            tensors[name] = (blocks(codes, scales, bits), type_id, array.shape)
    return tensors, packed


def qwen3_tensors(layers: int = 2) -> tuple[dict, dict]:
    """GGUF name -> what to write, and transformers' name -> values, by the libraries' own names and shapes."""
    with torch.device("meta"):
        model = Qwen3ForCausalLM(
            Qwen3Config(
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=64,
                vocab_size=320,
            )
        )
    library_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, layers)
    kinds = [GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0]
    written, values = {}, {}
    for i, (name, tensor) in enumerate(model.state_dict().items()):
        array = dense(i, *tensor.shape)
        stem = library_names.get_name(name, try_suffixes=(".weight",))
        assert stem, name
        if array.ndim == 1:
            written[stem], values[name] = array, array
        else:
            kind = kinds[i % 3]
            written[stem] = quantized(array, kind)
            values[name] = gguf.quants.dequantize(written[stem][0], kind).reshape(array.shape)
    return written, values
