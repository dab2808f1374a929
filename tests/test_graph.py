"""Exported graphs and their plans compute what the diffusers and transformers modules compute."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from exporter.bundle import Bundle
from exporter.lower import COMPONENTS, lower_bundle
from exporter.modulation import evaluate
from exporter.reference import load_pipeline
from tests.interpreter import run_plan
from tests.pipelines import CONFIGURATIONS, export
from tests.reference import relative_error

ROWS, COLUMNS = 3, 5
SIGMA = 0.9


@pytest.fixture(scope="module", params=["two-heads-ternary", "one-head", "no-double", "no-packing"])
def bundle(request, exported):
    return exported(request.param)


def _rotary(positions: np.ndarray, size: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    angles = positions[:, None] * theta ** (-np.arange(0, size, 2) / size)
    return np.cos(angles).astype(np.float32)[None], np.sin(angles).astype(np.float32)[None]


def _encoder_case(pipeline, opened, rng) -> tuple[dict[str, np.ndarray], dict[str, int], np.ndarray]:
    text, tokens = opened.manifest["text"], 11
    ids = rng.integers(0, 300, (1, tokens))
    mask = np.arange(tokens)[None] < 8
    cos, sin = _rotary(np.arange(tokens), text["rotary"]["head_size"], text["rotary"]["theta"])
    states = pipeline.text_encoder(
        torch.tensor(ids), attention_mask=torch.tensor(mask.astype(np.int64)), output_hidden_states=True
    ).hidden_states
    expected = torch.cat([states[layer] for layer in text["layers"]], dim=-1).numpy()
    return {"token_ids": ids, "key_mask": mask, "rotary_cos": cos, "rotary_sin": sin}, {"text_tokens": tokens}, expected


def _sinusoid(pipeline) -> np.ndarray:
    return pipeline.transformer.time_guidance_embed.time_proj(torch.tensor([1000 * SIGMA])).numpy()


def _modulation_case(pipeline, opened, rng) -> tuple[dict[str, np.ndarray], dict[str, int], np.ndarray]:
    model, sinusoid = pipeline.transformer, _sinusoid(pipeline)
    embedded = torch.nn.functional.silu(model.time_guidance_embed.timestep_embedder(torch.tensor(sinusoid)))
    double = [model.double_stream_modulation_img, model.double_stream_modulation_txt] * bool(model.transformer_blocks)
    heads = [*double, model.single_stream_modulation, model.norm_out]
    expected = torch.cat([head.linear(embedded) for head in heads], dim=1).numpy()
    assert opened.manifest["modulation"]["width"] == expected.size
    return {"timestep_features": sinusoid}, {}, expected


def _denoiser_case(pipeline, opened, rng) -> tuple[dict[str, np.ndarray], dict[str, int], np.ndarray]:
    model, manifest, tokens = pipeline.transformer, opened.manifest, 7
    image_ids = torch.tensor([[0, row, column, 0] for row in range(ROWS) for column in range(COLUMNS)])
    text_ids = torch.tensor([[0, 0, 0, position] for position in range(tokens)])
    tables = {}
    for name, ids in (("image", image_ids), ("text", text_ids)):
        for table, kind in zip(model.pos_embed(ids), ("cos", "sin"), strict=True):
            tables[f"{name}_rotary_{kind}"] = table[None, :, ::2].numpy()
    latents = rng.standard_normal((1, ROWS * COLUMNS, manifest["latents"]["channels"])).astype(np.float32)
    features = rng.standard_normal((1, tokens, manifest["text"]["features"])).astype(np.float32)
    modulation = evaluate(opened.graph("modulation"), [_sinusoid(pipeline)])
    expected = model(
        torch.tensor(latents), torch.tensor(features), torch.tensor([SIGMA]), image_ids, text_ids, return_dict=False
    )[0].numpy()
    inputs = {"latents": latents, "features": features, "modulation": modulation, **tables}
    return inputs, {"image_tokens": ROWS * COLUMNS, "text_tokens": tokens}, expected


def _decoder_case(pipeline, opened, rng) -> tuple[dict[str, np.ndarray], dict[str, int], np.ndarray]:
    latents = rng.standard_normal((1, ROWS, COLUMNS, opened.manifest["latents"]["channels"])).astype(np.float32)
    vae = pipeline.vae
    z = torch.tensor(latents).permute(0, 3, 1, 2)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    z = pipeline._unpatchify_latents(z * deviation + vae.bn.running_mean.view(1, -1, 1, 1))
    return {"latents": latents}, {"rows": ROWS, "columns": COLUMNS}, vae.decode(z, return_dict=False)[0].numpy()


CASES = {
    "encoder": _encoder_case,
    "modulation": _modulation_case,
    "denoiser": _denoiser_case,
    "decoder": _decoder_case,
}


@torch.no_grad()
def test_onnxruntime_and_the_plan_equal_torch(bundle):
    opened = Bundle(bundle)
    pipeline = load_pipeline(bundle)
    plans = lower_bundle(bundle)
    for component in COMPONENTS:
        inputs, symbols, expected = CASES[component](pipeline, opened, np.random.default_rng(0))
        session = onnxruntime.InferenceSession(bundle / f"{component}.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, inputs)
        assert relative_error(found, expected) < 1e-4, component

        step = {"step_size": np.float32([-0.25])} if component == "denoiser" else {}
        outputs = run_plan(
            plans[component], lambda name, c=component: opened.tensor(c, name), symbols, {**inputs, **step}
        )
        if component == "decoder":
            expected = expected[0].transpose(1, 2, 0)
            pixels = outputs["pixels"].view(np.uint8).reshape(*expected.shape[:2], 4)
            assert np.abs(pixels[..., :3] - 255 * np.clip(expected / 2 + 0.5, 0, 1)).max() < 0.51
            assert (pixels[..., 3] == 255).all()
        name = session.get_outputs()[0].name
        assert relative_error(outputs[name], expected) < 1e-5, component
        if component == "denoiser":
            assert relative_error(outputs["next_latents"], inputs["latents"] - 0.25 * expected) < 1e-5


def test_configurations_cover_every_kind_of_weights():
    assert {c.weights for c in CONFIGURATIONS.values()} == {"binary", "ternary", "keep"}


def test_export_is_deterministic(tmp_path, exported):
    again = export("one-head", tmp_path)
    first = exported("one-head")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((first / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_what_no_picture_needs_is_not_stored(bundle):
    opened = Bundle(bundle)
    used, built = max(opened.manifest["text"]["layers"]), opened.configs["text_encoder"]["num_hidden_layers"]
    names = set(opened.tensors("encoder"))
    layers = {int(name.split(".")[1]) for name in names if name.startswith("layers.")}
    assert layers == set(range(used))
    assert ("norm.weight" in names) == (used == built)  # only the very last hidden state passes the final norm
    assert not [name for name in names if name.startswith("lm_head")]
    decoder = {name.split(".")[0] for name in opened.tensors("decoder")}
    assert decoder == {"decoder", "post_quant_conv", "bn"}
