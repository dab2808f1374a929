"""MLX packs as the published ones are, written by mlx itself from tiny pipelines and random matrices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from safetensors.torch import load_file

BITS = {"binary": 1, "ternary": 2}
DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
NAME = "transformer_blocks.0.attn.to_q"
FILE = "diffusion_pytorch_model.safetensors"


def words_of(codes: np.ndarray, bits: int) -> np.ndarray:
    """u8[N, K] codes -> u32 words: code j of a row at bit j·bits of a little-endian stream."""
    stream = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little").view("<u4")


def low_bit(kind: str, rows: int, columns: int, seed: int = 0):
    """(codes u8[N, K], s f32[N, K/128]) with s that bfloat16 holds, some of them 0."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2 if kind == "binary" else 3, (rows, columns), dtype=np.uint8)
    scales = torch.from_numpy(rng.uniform(0.0046, 0.0508, (rows, columns // 128))).bfloat16().float().numpy()
    scales[rng.random(scales.shape) < 0.1] = 0
    return codes, scales


def low_bit_triple(kind: str, codes: np.ndarray, scales: np.ndarray, dtype: mx.Dtype = mx.bfloat16) -> dict:
    """suffix -> array, as packs have it: scale 2s and bias −s for one bit, s and −s for two."""
    return {
        ".weight": mx.array(words_of(codes, BITS[kind])),
        ".scales": mx.array(scales * (2 if kind == "binary" else 1)).astype(dtype),
        ".biases": mx.array(-scales).astype(dtype),
    }


def affine_triple(weight: np.ndarray, group: int = 64, dtype: mx.Dtype = mx.bfloat16) -> dict:
    """suffix -> array, as mlx quantizes to four bits."""
    parts = mx.quantize(mx.array(weight).astype(dtype), group_size=group, bits=4)
    return dict(zip((".weight", ".scales", ".biases"), parts, strict=True))


def numbers(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def write(folder: Path, file: str, tensors: dict[str, mx.array], **record) -> Path:
    """A component's folder with one file of mlx's own writer, and its quantization_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / file), tensors)
    if record:
        (folder / "quantization_config.json").write_text(json.dumps({"format": "mlx-packed-affine", **record}))
    return folder


def packed(triple: dict, name: str = NAME) -> dict[str, mx.array]:
    return {name + suffix: array for suffix, array in triple.items()}


def pack_transformer(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, mx.array]:
    """The block matrices as words, scales and biases, everything else as it is."""
    found = {}
    for name, tensor in tensors.items():
        if "transformer_blocks." not in name or tensor.ndim != 2:
            found[name] = mx.array(tensor.float().numpy()).astype(mx.bfloat16)
            continue
        groups = tensor.float().numpy().reshape(len(tensor), -1, 128)
        scales = np.abs(groups).max(axis=2)
        codes = (groups > 0) if kind == "binary" else 1 + np.sign(groups)
        codes = codes.astype(np.uint8).reshape(tensor.shape)
        found |= packed(low_bit_triple(kind, codes, scales), name.removesuffix(".weight"))
    return found


def make_pack(pipeline: Path, folder: Path, kind: str) -> Path:
    """The pipeline as the published packs lay it out."""
    folder.mkdir(parents=True)
    index = {"_class_name": "Flux2KleinPipeline", "_diffusers_version": "0.37.0.dev0"}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "LICENSE").write_text("terms")
    for part in ("vae", "tokenizer", "scheduler"):
        shutil.copytree(pipeline / part, folder / part)
    transformer = folder / "transformer-packed-mflux"
    tensors = pack_transformer(load_file(pipeline / "transformer" / FILE), kind)
    write(transformer, FILE, tensors, bits=BITS[kind], group_size=128)
    config = json.loads((pipeline / "transformer/config.json").read_text())
    extra = {"enable_time_sign_embed": False, "musubi_block_swap_device": "cpu", "musubi_blocks_to_swap": 0}
    (transformer / "config.json").write_text(json.dumps({**config, **extra}))
    encoder = {}
    for name, tensor in load_file(pipeline / "text_encoder/model.safetensors").items():
        if name.startswith("lm_head"):
            continue
        if tensor.ndim == 2:
            encoder |= packed(affine_triple(tensor.float().numpy()), name.removesuffix(".weight"))
        else:
            encoder[name] = mx.array(tensor.float().numpy()).astype(mx.bfloat16)
    write(folder / "text_encoder-mlx-4bit", "model.safetensors", encoder)
    weight_map = dict.fromkeys(encoder, "model.safetensors")
    (folder / "text_encoder-mlx-4bit/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = json.loads((pipeline / "text_encoder/config.json").read_text())
    record = {"group_size": 64, "bits": 4}
    (folder / "text_encoder-mlx-4bit/config.json").write_text(
        json.dumps({**config, "quantization": record, "quantization_config": record})
    )
    return folder
