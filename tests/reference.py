"""The same pictures with diffusers: what the browser's are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from exporter.bundle import Bundle
from exporter.reference import load_pipeline


@dataclass(frozen=True)
class Expected:
    """features f32[text_tokens, features]; latents f32[steps, image_tokens, channels]; image u8[H, W, 3]."""

    features: np.ndarray
    latents: np.ndarray
    image: np.ndarray


def diffusers_picture(bundle: Path, prompt: str, size: tuple[int, int], steps: int, seed: int) -> Expected:
    """Run `Flux2KleinPipeline` in float32 on the bundle's de-quantized weights.

    Args:
        size: width, height in pixels.
        seed: of torch's CPU generator.
    """
    text = Bundle(bundle).manifest["text"]
    pipeline = load_pipeline(bundle)
    pipeline.set_progress_bar_config(disable=True)
    layers = tuple(text["layers"])
    with torch.no_grad():
        features, _ = pipeline.encode_prompt(prompt, max_sequence_length=text["length"], text_encoder_out_layers=layers)
    latents: list[np.ndarray] = []

    def keep(_pipeline, _step, _timestep, tensors):
        latents.append(tensors["latents"][0].numpy().copy())
        return tensors

    image = pipeline(
        prompt=prompt,
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        max_sequence_length=text["length"],
        text_encoder_out_layers=layers,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents"],
        guidance_scale=1.0,
    ).images[0]
    return Expected(features[0].numpy(), np.stack(latents), np.round(image * 255).astype(np.uint8))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """‖found − expected‖ / ‖expected‖ in float64."""
    expected = np.asarray(expected, np.float64).reshape(-1)
    return float(np.linalg.norm(np.asarray(found, np.float64).reshape(-1) - expected) / np.linalg.norm(expected))


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two u8 pictures in dB."""
    error = np.mean((found.astype(np.float64) - expected.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))
