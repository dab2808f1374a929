"""Stage 2: train the autoencoder, and stage 3: render scenes and cache their latents.

    python -m training.vae --data DIR --run DIR [--out DIR]

The VAE learns on 128-pixel crops (L1, edges, a little KL). Then the statistics of the 64 packed latent
channels go into its batch norm, as in FLUX.2, and `--scenes` scenes are encoded into run/cache.pt:
latents [S, 64, 16, 16] float16 (normalised), tokens [S, captions, 48] int16, empty [48] int16.
"""

import argparse
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen2TokenizerFast

from .captions import caption
from .common import Budget, Log, learning_rate, mixed_precision, save_pieces, set_rate
from .model import TEXT_LENGTH, build_vae, pack_latents
from .scenes import Renderer, load_objects, random_scene, scene_arrays
from .sheet import save_grid
from .tokenizer import encode_batch


def scene_batch(data: Path, seed: int, count: int, captions: int) -> dict[str, np.ndarray]:
    """`count` random scenes as arrays, with `captions` tokenized captions each."""
    rng = random.Random(seed)
    objects = load_objects(data)
    scenes = [random_scene(objects, rng) for _ in range(count)]
    arrays = scene_arrays(scenes)
    if captions:
        tokenizer = Qwen2TokenizerFast.from_pretrained(str(data / "tokenizer"))
        texts = [caption(scene, rng) for scene in scenes for _ in range(captions)]
        ids = encode_batch(tokenizer, texts, TEXT_LENGTH)
        arrays["tokens"] = np.array(ids, np.int16).reshape(count, captions, TEXT_LENGTH)
    return arrays


def many_scenes(data: Path, seed: int, count: int, captions: int, workers: int) -> dict[str, torch.Tensor]:
    """As scene_batch, in parallel, as tensors."""
    size = min(count, 5000)
    with ProcessPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(scene_batch, data, seed * 100_003 + first, min(size, count - first), captions)
            for first in range(0, count, size)
        ]
        parts = [job.result() for job in jobs]
    return {key: torch.from_numpy(np.concatenate([part[key] for part in parts])) for key in parts[0]}


def edges(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Horizontal and vertical pixel differences."""
    return image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]


def vae_loss(vae, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, mean squared error) of images [B, 3, H, W] in -1..1."""
    mean, logvar = vae.quant_conv(vae.encoder(image)).float().chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    latents = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
    result = vae.decoder(vae.post_quant_conv(latents)).float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(result), edges(image), strict=False))
    return F.l1_loss(result, image) + 0.5 * edge + 1e-4 * kl, F.mse_loss(result.detach(), image)


def train_vae(args, render: Renderer, scenes: dict[str, torch.Tensor], log: Log):
    """Train and return the VAE in evaluation mode."""
    torch.manual_seed(args.seed)
    device = args.device
    vae = build_vae().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0, betas=(0.9, 0.99), weight_decay=1e-4, fused=device == "cuda")
    loss_of = torch.compile(vae_loss, dynamic=False) if args.compile else vae_loss
    budget, step, count = Budget(args.vae_minutes), 0, len(scenes["rgb"])
    while budget.progress < 1:
        rows = torch.randint(count, (args.vae_batch,), device=device)
        image = render({key: scenes[key][rows] for key in ("index", "place", "rgb")})
        top, left = torch.randint(0, 129, (2,)).tolist()
        image = image[..., top : top + 128, left : left + 128].contiguous(memory_format=torch.channels_last)
        rate = learning_rate(1e-3, step, budget.progress, warmup=100)
        set_rate(optimizer, rate)
        with mixed_precision(device):
            loss, error = loss_of(vae, image)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % args.log_every == 0:
            log(
                stage="vae",
                step=step,
                loss=loss.item(),
                psnr=float(10 * torch.log10(4 / error)),
                seconds=budget.seconds,
            )
        budget.begin()
        step += 1
    log(stage="vae", step=step, loss=loss.item(), psnr=float(10 * torch.log10(4 / error)), seconds=budget.seconds)
    return vae.eval()


@torch.no_grad()
def encode(vae, image: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] -> packed latents [B, 64, H/16, W/16] float32, not normalised."""
    with mixed_precision(image.device):
        moments = vae.quant_conv(vae.encoder(image.contiguous(memory_format=torch.channels_last)))
    return pack_latents(moments.float().chunk(2, dim=1)[0])


@torch.no_grad()
def cache_latents(args, vae, render: Renderer, scenes: dict[str, torch.Tensor], log: Log) -> torch.Tensor:
    """Set the VAE's batch-norm statistics; return normalised latents [S, 64, 16, 16] float16."""
    chunks, chunk = [], 256 if args.device == "cuda" else 16
    for first in range(0, len(scenes["rgb"]), chunk):
        image = render({key: scenes[key][first : first + chunk] for key in ("index", "place", "rgb")})
        chunks.append(encode(vae, image).half())
    latents = torch.cat(chunks)
    sample = latents[:20_000].float()
    vae.bn.running_mean.copy_(sample.mean((0, 2, 3)).half())
    vae.bn.running_var.copy_(sample.var((0, 2, 3)).half())
    mean = vae.bn.running_mean[:, None, None]
    scale = torch.sqrt(vae.bn.running_var[:, None, None] + vae.config.batch_norm_eps)
    for first in range(0, len(latents), 8192):
        part = latents[first : first + 8192]
        part.copy_((part.float() - mean) / scale)
    log(
        stage="cache",
        scenes=len(latents),
        mean=float(latents[:8192].float().mean()),
        std=float(latents[:8192].float().std()),
        low=float(scale.min()),
        high=float(scale.max()),
    )
    return latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="also save the VAE as float16 pieces and a picture here")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--vae-minutes", type=float, default=2.2)
    parser.add_argument("--vae-batch", type=int, default=96)
    parser.add_argument("--scenes", type=int, default=200_000)
    parser.add_argument("--captions", type=int, default=4)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    log = Log(args.run / "log.jsonl")
    scenes = many_scenes(args.data, args.seed, args.scenes, args.captions, args.workers)
    tokens = scenes.pop("tokens")
    log(stage="scenes", count=len(tokens))
    scenes = {key: value.to(args.device) for key, value in scenes.items()}
    render = Renderer(args.data, args.device)
    vae = train_vae(args, render, scenes, log)
    latents = cache_latents(args, vae, render, scenes, log)
    tokenizer = Qwen2TokenizerFast.from_pretrained(str(args.data / "tokenizer"))
    empty = torch.tensor(encode_batch(tokenizer, [""], TEXT_LENGTH)[0], dtype=torch.int16)
    torch.save(dict(latents=latents.cpu(), tokens=tokens, empty=empty), args.run / "cache.pt")
    torch.save(vae.state_dict(), args.run / "vae.pt")
    if args.out:
        save_pieces(vae.state_dict(), args.out, "vae")
        image = render({key: scenes[key][:16] for key in ("index", "place", "rgb")})
        with torch.no_grad(), mixed_precision(args.device):
            back = vae.decode(vae.encode(image).latent_dist.mode()).sample.float()
        log(stage="vae-check", psnr=float(10 * torch.log10(4 / F.mse_loss(back, image))))
        save_grid(torch.cat([image, back]), args.out / "vae.png", columns=8)
    log(stage="vae-done")


if __name__ == "__main__":
    main()
