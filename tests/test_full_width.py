"""A double block (ternary) and a single block (binary) of klein-4B's true width equal torch's.

A model of klein's sizes with one block of each kind, random codes and scales, goes the whole way: export, plan,
shards, and the page's runtime and kernels, in Node on a software adapter. The reference is diffusers' transformer
with the same de-quantized weights. 256 image and 512 text tokens, a few of which have outliers as klein's have:
features of 8,830, residual streams of 41,000.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline

from exporter.bundle import Bundle, export_bundle
from exporter.klein import KLEIN_4B
from exporter.reference import load_pipeline
from exporter.synthetic import Synthetic, open_synthetic
from exporter.website import build_site
from tests.kernels import lavapipe

SCRIPT = Path(__file__).parent / "runtime" / "run_denoiser.mjs"
WIDTH, FEATURES, CHANNELS = 3072, 7680, 128
SIDE, TEXT_TOKENS = 16, 512
STEP = 7  # row of the table of modulations: neither the first time nor the last
OUTLIERS = [100, 2660, 5220]  # channels of the features, one in each of the three hidden states
LARGEST_FEATURE, LARGEST_RESIDUAL, LIFTED = 8830.0, 41_000.0, 17
BOUND = 1e-4  # one wrong group of codes shows; measured are 7e-6

Streams = dict[str, np.ndarray]  # name -> f32[tokens, channels]; both kinds of tokens are text, then image


class Ports(NamedTuple):
    """What the runtime is given and what it gives when it computes one block."""

    inputs: list[str]
    outputs: list[str]


BLOCKS = {
    "double": Ports(["latents", "features"], ["image_in", "text_in", "double_out"]),
    "single": Ports(["double_out"], ["single_out"]),
}


def _configs() -> dict[str, dict[str, Any]]:
    """klein's transformer with one block of each kind, and the least of a text encoder and a VAE."""
    configs = copy.deepcopy(KLEIN_4B)
    configs["transformer"].update(num_layers=1, num_single_layers=1)
    configs["text_encoder"].update(
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=128,
        num_hidden_layers=3,
        vocab_size=5632,
        bos_token_id=None,
        eos_token_id=None,
    )
    configs["vae"].update(block_out_channels=[32, 32, 32, 32], layers_per_block=1)
    return configs


def _lift(checkpoint: Synthetic) -> None:
    """Make the embedder take outliers of the features into one channel of the residual stream, klein's way."""
    read = checkpoint.tensor

    def tensor(component: str, name: str) -> np.ndarray:
        values = read(component, name)
        if name == "context_embedder.weight":
            values[LIFTED, OUTLIERS] = LARGEST_RESIDUAL / LARGEST_FEATURE / len(OUTLIERS)
        return values

    checkpoint.tensor = tensor


def _inputs() -> dict[str, np.ndarray]:
    """latents f32[256, 128] and features f32[512, 7680], the first tokens of which have outliers."""
    generator = np.random.default_rng(4)
    latents = generator.standard_normal((SIDE * SIDE, CHANNELS), np.float32)
    features = 15 * generator.standard_normal((TEXT_TOKENS, FEATURES), np.float32)
    sizes = np.array([1, -0.6, 0.3, 0.1, -0.03], np.float32)
    features[: len(sizes), OUTLIERS] = LARGEST_FEATURE * sizes[:, None]
    return {"latents": latents, "features": features}


def _keep_block(plan_file: Path, block: str) -> None:
    """Leave one block of the plan to run, and make inputs and outputs of the residual streams around it.

    Their names are image_in, text_in, double_out (text, then image) and single_out.
    """
    plan = json.loads(plan_file.read_text("utf-8"))
    dispatches = plan["dispatches"]
    target = {dispatch.get("source"): dispatch["bindings"]["y"] for dispatch in dispatches}
    gated = [dispatch for dispatch in dispatches if dispatch["options"].get("epilogue") == "gate_residual"]
    last = gated[-1]["bindings"]
    between = last["residual"]
    indices = {
        "image_in": target["x_embedder"],
        "text_in": target["context_embedder"],
        "double_out": between,
        "single_out": last["y"],
    }
    for name, index in indices.items():
        role = "input" if name in BLOCKS[block].inputs else "output"
        kept = {key: plan["values"][index][key] for key in ("dtype", "elements")}
        plan["values"][index] = {**kept, "name": name, "role": role}
    end = 1 + max(place for place, dispatch in enumerate(dispatches) if dispatch["bindings"]["y"] == between)
    for dispatch in dispatches[end:] if block == "double" else dispatches[:end]:
        dispatch["when"] = 0
    plan_file.write_text(json.dumps(plan), encoding="utf-8")


def _run(site: Path, url: str, manifest: str, block: str, given: Streams, *, baseline: bool = True) -> Streams:
    """What the runtime computes, in Node on the software adapter."""
    for name in BLOCKS[block].inputs:
        given[name].tofile(site / f"{name}.f32")
    request = {
        "manifest": f"{url}/models/{manifest}",
        "kernels": f"{url}/kernels/index.json",
        "folder": str(site),
        "baseline": baseline,
        "rows": SIDE,
        "columns": SIDE,
        "text_tokens": TEXT_TOKENS,
        "modulation": STEP,
        "inputs": BLOCKS[block].inputs,
        "outputs": BLOCKS[block].outputs,
    }
    (site / "request.json").write_text(json.dumps(request), encoding="utf-8")
    setup = lavapipe.ensure()
    # Here computing takes longer than compiling.
    environment = {**os.environ, **setup.environment, "LP_NATIVE_VECTOR_WIDTH": "256"}
    command = [setup.node, str(SCRIPT), str(setup.package), str(site / "request.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: np.fromfile(site / f"{name}.f32", np.float32).reshape(-1, WIDTH) for name in request["outputs"]}


@torch.no_grad()
def _expect(bundle: Path, inputs: dict[str, np.ndarray]) -> Streams:
    """torch's streams, with the bundle's weights."""
    model = load_pipeline(bundle).transformer
    streams: dict[str, torch.Tensor] = {}

    def double(_block, _arguments, given, result):
        streams["text_in"], streams["image_in"] = given["encoder_hidden_states"], given["hidden_states"]
        streams["double_out"] = torch.cat(result, dim=1)

    def single(_block, _arguments, _given, result):
        streams["single_out"] = result

    model.transformer_blocks[0].register_forward_hook(double, with_kwargs=True)
    model.single_transformer_blocks[0].register_forward_hook(single, with_kwargs=True)
    latents, features = (torch.from_numpy(inputs[name])[None] for name in ("latents", "features"))
    model(
        hidden_states=latents,
        encoder_hidden_states=features,
        timestep=torch.tensor([Bundle(bundle).manifest["modulation"]["sigmas"][STEP]]),
        img_ids=Flux2KleinPipeline._prepare_latent_ids(torch.empty(1, CHANNELS, SIDE, SIDE)),
        txt_ids=Flux2KleinPipeline._prepare_text_ids(features),
    )
    return {**inputs, **{name: stream[0].numpy() for name, stream in streams.items()}}


@pytest.fixture
def compute(local_server: Callable[[Path], str]) -> Iterator[Callable[[str, str], tuple[Streams, Streams]]]:
    """`compute(block, weights)` is what the runtime and what torch make of the same inputs."""
    with tempfile.TemporaryDirectory() as place:  # a gigabyte, which pytest would keep for three sessions

        def both(block: str, weights: str) -> tuple[Streams, Streams]:
            bundle, site = Path(place) / f"wide-{weights}", Path(place) / "site"
            with open_synthetic("wide", weights=weights, configs=_configs()) as checkpoint:
                _lift(checkpoint)
                export_bundle(checkpoint, bundle, weights=weights, layers=(1, 2, 3))
            (entry,) = build_site([bundle], site)
            _keep_block((site / "models" / entry["manifest"]).with_name("denoiser.plan.json"), block)
            expected = _expect(bundle, _inputs())
            return _run(site, local_server(site), entry["manifest"], block, expected), expected

        yield both


def _worst_token(found: np.ndarray, expected: np.ndarray) -> float:
    """The greatest relative error of a token, so that no token with outliers hides the others'."""
    errors = np.linalg.norm(np.float64(found) - expected, axis=1) / np.linalg.norm(np.float64(expected), axis=1)
    return float(errors.max())


def _check(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare streams f32[tokens, WIDTH], or what a block adds to them."""
    assert np.isfinite(found).all() and _worst_token(found, expected) < BOUND
    assert np.linalg.norm(expected, axis=1).min() > 10, "what adds nothing proves nothing"


def test_a_full_width_double_block_equals_torch(compute):
    found, expected = compute("double", "ternary")
    assert abs(expected["text_in"]).max() > 0.99 * LARGEST_RESIDUAL
    before = [np.concatenate([side["text_in"], side["image_in"]]) for side in (found, expected)]
    after = [side["double_out"] for side in (found, expected)]
    _check(*before)
    _check(*after)
    _check(*(np.float64(b) - a for a, b in zip(before, after, strict=True)))


def test_a_full_width_single_block_equals_torch(compute):
    found, expected = compute("single", "binary")
    before, after = expected["double_out"], (found["single_out"], expected["single_out"])
    assert abs(before).max() > 0.99 * LARGEST_RESIDUAL
    _check(*after)
    _check(*(np.float64(side) - before for side in after))
