"""Pictures of fixed prompts, to look at while training."""

from pathlib import Path

import torch

from .common import mixed_precision
from .flow import Velocity, sample
from .model import TEXT_LENGTH, encode_prompt, unpack_latents
from .sheet import save_grid
from .tokenizer import encode_batch

PROMPTS = [
    "a red apple on a blue background",
    "火箭，蓝色背景",
    "three strawberries on a white background",
    "a cat",
    "two rockets",
    "a castle to the left of a rainbow",
    "pizza and hamburger",
    "a dog face on a green background",
]


@torch.no_grad()
def decode(vae, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents [B, 64, h, w] -> images [B, 3, 16h, 16w] in -1..1."""
    scale = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)[:, None, None]
    return vae.decode(unpack_latents(latents.float() * scale + vae.bn.running_mean[:, None, None])).sample


@torch.no_grad()
def prompt_sheet(velocity: Velocity, text_encoder, tokenizer, vae, path: Path, sigmas: list[float], **how) -> None:
    """Two prompts of PROMPTS a row, four seeds each; `how` goes to `sample`."""
    device = next(vae.parameters()).device
    ids = torch.tensor(encode_batch(tokenizer, [p for p in PROMPTS for _ in range(4)], TEXT_LENGTH), device=device)
    noise = torch.randn(4, 64, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(len(PROMPTS), 1, 1, 1)
    with torch.compiler.set_stance("force_eager"):  # odd batch sizes are not worth compiling for
        with mixed_precision(device):
            text = encode_prompt(text_encoder, ids, tokenizer.pad_token_id)
        states = sample(velocity, noise.to(device), text, sigmas, **how)
    save_grid(decode(vae, states[-1]), path, columns=8)
