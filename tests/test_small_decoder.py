"""A decoder from another folder: taken where it decodes the same latents, refused in one line where not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKLFlux2
from safetensors.torch import load_file, save_file

from exporter import small_decoder
from exporter.bundle import Bundle, export_bundle
from exporter.checkpoint import Checkpoint
from exporter.errors import BadCheckpoint
from tests.tiny import make_pipeline, randomise

LATENTS, GROUPS = 4, 8
CHANNELS, SMALL = (16, 32, 32, 32), (8, 16, 24, 24)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("own") / "tiny", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def decoder(checkpoint, tmp_path_factory) -> Path:
    """A VAE folder with a narrower decoder; its statistics are the checkpoint's before rounding to bfloat16."""
    vae = AutoencoderKLFlux2(
        block_out_channels=CHANNELS,
        decoder_block_out_channels=SMALL,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=GROUPS,
        sample_size=1024,
    )
    randomise(vae, torch.Generator().manual_seed(8))
    own = load_file(checkpoint / "vae" / "diffusion_pytorch_model.safetensors")
    with torch.no_grad():
        for name in ("running_mean", "running_var"):
            getattr(vae.bn, name).copy_(own[f"bn.{name}"].float() * 1.001)
    folder = tmp_path_factory.mktemp("other") / "small-decoder"
    vae.save_pretrained(folder)
    (folder / "LICENSE.md").write_text("the decoder's licence\n", "utf-8")
    return folder


def test_the_bundle_decodes_with_the_other_decoder(checkpoint, decoder, tmp_path) -> None:
    made = export_bundle(
        checkpoint, tmp_path / "out", weights="keep", encoder_bits=16, layers=(1, 2, 3), small_decoder=decoder
    )
    bundle = Bundle(made.folder)
    assert bundle.manifest["decoder_source"] == "small-decoder"
    assert bundle.tensors("decoder")["decoder.conv_in.weight"]["shape"] == [24, 3, 3, 4]
    assert bundle.manifest["sizes"]["default"] == [64, 64]  # the checkpoint's, not the other VAE's
    assert bundle.configs["vae"]["decoder_block_out_channels"] == list(SMALL)
    assert (bundle.path / "LICENSE-decoder.md").read_text("utf-8") == "the decoder's licence\n"
    latents = np.random.default_rng(2).standard_normal((1, 3, 2, 4 * LATENTS)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(bundle.graph("decoder")).run(None, {"latents": latents})
    vae = AutoencoderKLFlux2.from_pretrained(decoder)
    with torch.no_grad():
        std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
        z = torch.tensor(latents) * std + vae.bn.running_mean
        z = z.reshape(3, 2, LATENTS, 2, 2).permute(2, 0, 3, 1, 4).reshape(1, LATENTS, 6, 4)
        expected = vae.decode(z).sample.numpy()
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


def test_the_folder_of_a_whole_pipeline_is_taken_too(checkpoint, decoder, tmp_path) -> None:
    shutil.copytree(decoder, tmp_path / "pipeline" / "vae")
    opened = Checkpoint(checkpoint)
    assert small_decoder.take_decoder(opened, tmp_path / "pipeline") == "pipeline"
    assert opened.shape("vae", "decoder.conv_in.weight") == (24, 4, 3, 3)


def config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def statistics(folder: Path, name: str, change) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name]) if change else None
    save_file({key: value for key, value in tensors.items() if value is not None}, path)


def bump(values: torch.Tensor) -> torch.Tensor:
    changed = values.clone()
    changed[5] *= 1.5
    return changed


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: config(f, latent_channels=8), "latent_channels"),
        (lambda f: config(f, patch_size=[1, 1]), "patch_size"),
        (lambda f: config(f, batch_norm_eps=0.1), "expected batch_norm_eps 0.0001"),
        (lambda f: config(f, block_out_channels=[16, 32, 32]), "scales down by 16 with its patches, found 8"),
        (lambda f: config(f, _class_name="AutoencoderKL"), "AutoencoderKL"),
        (lambda f: statistics(f, "bn.running_var", bump), "channel 5 has"),
        (lambda f: statistics(f, "bn.running_mean", lambda v: v + torch.tensor(float("nan"))), "statistics"),
        (lambda f: statistics(f, "bn.running_mean", lambda v: v[:8].clone()), "16 packed channels, found 8"),
        (lambda f: statistics(f, "bn.running_var", None), "bn.running_var"),
        (lambda f: (f / "config.json").unlink(), "found none at"),
        (lambda f: (f / "config.json").write_text("[1", "utf-8"), "config.json: expected JSON"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), "diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_decoder_of_other_latents_is_refused_in_one_line(checkpoint, decoder, tmp_path, damage, said) -> None:
    folder = shutil.copytree(decoder, tmp_path / "other")
    damage(folder)
    with pytest.raises(BadCheckpoint) as caught:
        export_bundle(checkpoint, tmp_path / "out", weights="keep", layers=(1, 2, 3), small_decoder=folder)
    message = str(caught.value)
    assert said in message and "\n" not in message and "expected" in message
    assert not (tmp_path / "out").exists()
