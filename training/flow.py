"""Flow matching with the transformer: velocities, noise levels and samplers.

x_sigma = (1 - sigma) * latents + sigma * noise, velocity v = noise - latents ("Flow Matching for
Generative Modeling", arXiv 2210.02747). Latents are [B, 64, h, w], normalised by the VAE's batch norm.
"""

import math

import torch
import torch.nn.functional as F

from .common import mixed_precision
from .model import position_ids


def pipeline_sigmas(tokens: int = 256, steps: int = 4) -> list[float]:
    """The noise levels that Flux2KleinPipeline uses (empirical mu, exponential shift), with the final 0."""
    m200 = 0.00016927 * tokens + 0.45666666
    m10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (m200 - m10) / 190
    mu = m200 if tokens > 4300 else slope * steps + m200 - 200 * slope
    levels = [1 - i * (1 - 1 / steps) / max(steps - 1, 1) for i in range(steps)]
    return [math.exp(mu) / (math.exp(mu) + 1 / level - 1) for level in levels] + [0.0]


def fine_sigmas(coarse: list[float], parts: tuple[int, ...]) -> tuple[list[float], list[int]]:
    """Split every interval of `coarse` into equal parts; also the positions of the coarse levels."""
    levels, marks = [coarse[0]], [0]
    for high, low, count in zip(coarse, coarse[1:], parts, strict=False):
        levels += [high + (low - high) * (i + 1) / count for i in range(count)]
        marks.append(len(levels) - 1)
    return levels, marks


class Velocity:
    """Calls a transformer on [B, 64, h, w] latents."""

    def __init__(self, transformer, compile: bool):
        self.transformer = transformer
        self.ids: dict[tuple, tuple] = {}
        if compile:  # block by block: compiles in seconds, and one graph serves all blocks of a kind
            for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
                block.compile(dynamic=False)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """x [B, 64, h, w], sigma [B], text [B, 48, 768] -> velocity like x, float32."""
        height, width = x.shape[-2:]
        key = (height, width, x.device)
        if key not in self.ids:
            self.ids[key] = position_ids(height, width, x.device)
        image_ids, text_ids = self.ids[key]
        with mixed_precision(x.device):
            tokens = self.transformer(
                hidden_states=x.flatten(2).transpose(1, 2),
                encoder_hidden_states=text,
                timestep=sigma,
                img_ids=image_ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0]
        return tokens.float().transpose(1, 2).unflatten(2, (height, width))


def training_sigmas(count: int, device) -> torch.Tensor:
    """Random noise levels [count]: mostly logit-normal with shift 3, a quarter shifted like the sampler.

    The sampler's levels are 1, .955, .877, .704, 0: what an object is gets decided above .8, so that is where
    most of the training goes (logit-normal levels and the shift: "Scaling Rectified Flow Transformers", arXiv
    2403.03206). The uniform quarter, shifted by 7 as the pipeline's schedule is, covers both ends as well.
    """
    normal = torch.sigmoid(torch.randn(count, device=device))
    uniform = torch.rand(count, device=device)
    few = torch.rand(count, device=device) < 0.25
    level = torch.where(few, uniform, normal)
    shift = torch.where(few, 7.0, 3.0)
    return shift * level / (1 + (shift - 1) * level)


def flow_loss(velocity: Velocity, latents: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Mean squared velocity error at random noise levels. Latents [B, 64, h, w], text [B, 48, 768]."""
    sigma = training_sigmas(len(latents), latents.device)
    noise = torch.randn_like(latents)
    level = sigma[:, None, None, None]
    return F.mse_loss(velocity((1 - level) * latents + level * noise, sigma, text), noise - latents)


@torch.no_grad()
def sample(
    velocity: Velocity,
    noise: torch.Tensor,
    text: torch.Tensor,
    sigmas: list[float],
    empty: torch.Tensor | None = None,
    guidance: float = 1.0,
    second_order: bool = False,
    interval: tuple[float, float] = (0.0, 1.0),
) -> list[torch.Tensor]:
    """Integrate from noise [B, 64, h, w]; returns the states at all sigmas.

    With `empty` [1, 48, 768], classifier-free guidance ("Classifier-Free Diffusion Guidance", arXiv
    2207.12598) at levels inside `interval` ("Applying Guidance in a Limited Interval", arXiv 2404.07724).
    `second_order` uses the two-step Adams-Bashforth rule instead of Euler's.
    """
    x, states, last = noise, [noise], None
    for high, low in zip(sigmas, sigmas[1:], strict=False):
        level = torch.full((len(x),), high, device=x.device)
        v = velocity(x, level, text)
        if empty is not None and interval[0] <= high <= interval[1]:
            base = velocity(x, level, empty.to(text).expand_as(text))
            v = base + guidance * (v - base)
        step = low - high
        slope = v if last is None or not second_order else v + step / (2 * last[1]) * (v - last[0])
        x, last = x + step * slope, (v, step)
        states.append(x)
    return states
