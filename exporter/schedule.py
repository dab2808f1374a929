"""Step times, to the last bit those of site/js/runtime/schedule.js and rotary.js, whose table of modulations
is keyed by them: FlowMatchEulerDiscreteScheduler's as Flux2KleinPipeline sets it, rounded to float32 where
diffusers rounds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

F32 = np.float32


def empirical_mu(image_tokens: int, steps: int) -> float:
    """The resolution's shift as the pipeline computes it, in float64."""
    after_200 = 0.00016927 * image_tokens + 0.45666666
    if image_tokens > 4300:
        return after_200
    after_10 = 8.73809524e-5 * image_tokens + 1.89833333
    slope = (after_200 - after_10) / 190
    return slope * steps + (after_200 - 200 * slope)


def step_sigmas(config: dict[str, Any], steps: int, image_tokens: int) -> np.ndarray:
    """f32[steps]: the sigmas at which the denoiser runs, 1 at pure noise.

    Args:
        config: scheduler_config.json, as `exporter.configs.check_configs` lets it pass.
    """
    sigmas = [F32(sigma) for sigma in np.linspace(1.0, 1 / steps, steps)]
    if config.get("use_dynamic_shifting"):
        mu = empirical_mu(image_tokens, steps)
        strength = F32(mu if config.get("time_shift_type") == "linear" else math.exp(mu))
        sigmas = [strength / (strength + (1 / sigma - 1)) for sigma in sigmas]
    else:
        shift = 1.0 if config.get("shift") is None else float(config["shift"])
        sigmas = [F32(shift * float(sigma)) / (1 + F32(shift - 1) * sigma) for sigma in sigmas]
    terminal = config.get("shift_terminal")
    if terminal:
        scale = (1 - sigmas[-1]) / F32(1 - terminal)
        sigmas = [1 - (1 - sigma) / scale for sigma in sigmas]
    return np.array(sigmas, F32)


def shipped_sigmas(config: dict[str, Any], image_tokens: list[int]) -> list[float]:
    """The distinct sigmas of `config["steps"]` steps at these picture sizes, falling; each a float32 number."""
    found = {float(sigma) for tokens in image_tokens for sigma in step_sigmas(config, config["steps"], tokens)}
    return sorted(found, reverse=True)


def timestep_features(sigma: float, config: dict[str, Any], count: int) -> np.ndarray:
    """f32[1, count]: the sinusoid of a step's time, cosines, then sines."""
    train_steps = config.get("num_train_timesteps", 1000)
    timestep = F32(sigma * train_steps)
    time = timestep / F32(1000) * F32(1000)  # the pipeline divides, the transformer multiplies
    half = count // 2
    exponents = F32(-math.log(10000)) * np.arange(half, dtype=F32) / F32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(F32)
    angles = (time * frequencies).astype(np.float64)
    return np.concatenate([np.cos(angles), np.sin(angles)]).astype(F32)[None]
