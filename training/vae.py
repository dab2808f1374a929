"""Stage 3: train the autoencoder.

    python -m training.vae --data DIR --run DIR [--out DIR]

Writes run/vae.pt (and run/vae-train.pt while it trains), out/vae-0.safetensors and out/vae.png.

The loss is L1, L1 of edges, a little KL and, with a small weight, scale equivariance: latents averaged 2x2 must
decode to the picture averaged 2x2 ("Improving the Diffusability of Autoencoders", arXiv 2502.14831; the
idea also of EQ-VAE, arXiv 2502.09509). Latents then carry coarse shapes at low frequencies and little else at
high ones, which is what makes them easy to model; it also ties the sizes together, because half a picture's
latents are the latents of half its size. Both halves run in one compiled graph of one shape: a 256-pixel cut-out
is encoded as four quarters, and their joint latents, averaged, are decoded as a picture of 128 pixels.

Cut-outs come from canvases of 256 to 512 pixels; the last part of the time sees whole pictures of all shapes.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F

from .cache import encode, many_scenes
from .clock import Clock, Signals
from .common import Log, finish_arguments, learning_rate, mixed_precision, set_rate, stage_parser, training_loop
from .model import build_vae
from .optimizers import adamw
from .scenes import Renderer
from .sheet import save_grid
from .storage import limit_folder, load_checkpoint, load_pieces, piece_notes, save_checkpoint, save_pieces

CUT, TINY_CUT = 256, 64  # pixels of a cut-out, encoded as four quarters
WHOLE_FROM = 0.92  # from this progress on: whole pictures, not compiled
WHOLE_SIZES = ((256, 256), (256, 256), (192, 288), (384, 256), (384, 384))
TINY_SIZES = ((64, 64), (64, 96))
TRAIN_SCENES, CHECK_SCENES = 20_000, 64


def quarters(image: torch.Tensor) -> torch.Tensor:
    """[B, C, 2h, 2w] -> [4B, C, h, w]."""
    return torch.cat([half for row in image.chunk(2, 2) for half in row.chunk(2, 3)])


def joined(parts: torch.Tensor) -> torch.Tensor:
    """The inverse of `quarters`."""
    a, b, c, d = parts.chunk(4)
    return torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2)


def error(result: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """L1 plus half the L1 of horizontal and vertical pixel differences."""
    difference = result - image
    across, down = difference.diff(dim=3), difference.diff(dim=2)
    return difference.abs().mean() + 0.5 * (across.abs().mean() + down.abs().mean())


def sample_latents(vae, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents drawn from the encoder's distribution [B, 16, h/8, w/8], and the mean KL divergence."""
    image = image.contiguous(memory_format=torch.channels_last)
    mean, logvar = vae.quant_conv(vae.encoder(image)).float().chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    latents = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
    return latents, 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def vae_loss(vae, image: torch.Tensor, half_share: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, mean squared error) of images [B, 3, 2h, 2w] in -1..1, trained as 4B pictures [3, h, w]."""
    parts = quarters(image)
    latents, kl = sample_latents(vae, parts)
    halved = F.avg_pool2d(joined(latents), 2)
    result = vae.decoder(vae.post_quant_conv(torch.cat([latents, halved]))).float()
    whole, half = result[: len(parts)], result[len(parts) :]
    loss = error(whole, parts) + half_share * error(half, F.avg_pool2d(image, 2)) + 1e-4 * kl
    return loss, F.mse_loss(whole.detach(), parts)


def whole_loss(vae, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `vae_loss` for whole pictures [B, 3, H, W], which are not cut into quarters."""
    latents, kl = sample_latents(vae, image)
    result = vae.decoder(vae.post_quant_conv(latents)).float()
    return error(result, image) + 1e-4 * kl, F.mse_loss(result.detach(), image)


def random_windows(count: int, device) -> torch.Tensor:
    """Cut-outs of CUT pixels from canvases once to twice as large, as windows [B, 3] for the renderer."""
    side = 2 ** -torch.rand(count, device=device)
    return torch.stack([torch.rand_like(side) * (1 - side), torch.rand_like(side) * (1 - side), side], dim=1)


@torch.no_grad()
def set_statistics(vae, render: Renderer, scenes: dict[str, torch.Tensor], count: int) -> None:
    """Put mean and variance of the 64 packed latent channels over `count` scenes into the VAE's batch norm."""
    rows = range(0, min(count, len(scenes["rgb"])), 64)
    parts = [encode(vae, render({key: value[first : first + 64] for key, value in scenes.items()})) for first in rows]
    latents = torch.cat(parts)
    vae.bn.running_mean.copy_(latents.mean((0, 2, 3)).half())
    vae.bn.running_var.copy_(latents.var((0, 2, 3)).half())


def to_device(scenes: dict[str, torch.Tensor], device) -> dict[str, torch.Tensor]:
    """What the renderer needs of scenes."""
    return {key: scenes[key].to(device) for key in ("index", "place", "rgb")}


@torch.no_grad()
def check(args, vae, render: Renderer, log: Log) -> None:
    """PSNR on scenes that training did not see, at several sizes, and a picture of some.

    `psnr` is the mean of the pictures' own, as usual, in the range that pictures are shown in; `psnr_of_all` that of
    the squared error of all pictures together, in which the worst count most.
    """
    count = 2 if args.tiny else CHECK_SCENES
    scenes = to_device(many_scenes(args.data, args.seed + 9_000, count, 0), args.device)
    for size in ((256, 256),) if args.tiny else ((256, 256), (192, 192), (384, 384), (256, 384)):
        image = render(scenes, size)
        with mixed_precision(args.device):
            back = torch.cat([vae.decode(vae.encode(x).latent_dist.mode()).sample.float() for x in image.split(16)])
        errors = (back - image).square().mean((1, 2, 3))
        own = (back.clamp(-1, 1) - image.clamp(-1, 1)).square().mean((1, 2, 3))
        values = dict(psnr=10 * torch.log10(4 / own).mean(), psnr_of_all=10 * torch.log10(4 / errors.mean()))
        log(stage="vae-check", size=str(size), **{key: float(value) for key, value in values.items()})
        if args.out and size == (256, 256):
            save_grid(torch.cat([image[:8], back[:8]]), args.out / "vae.png", columns=8)


def vae_stage(args: argparse.Namespace) -> bool:
    """Train, resume or take over the autoencoder; returns whether run/vae.pt is complete."""
    log, device = Log(args.run / "log.jsonl"), args.device
    if (args.run / "vae.pt").exists():
        return True
    state = load_checkpoint(args.run / "vae-train.pt", device)
    clock = Clock(args.minutes, args.steps, state["seconds"] if state else 0.0, args.until)
    torch.manual_seed(args.seed)
    vae = build_vae(args.tiny).to(device, memory_format=torch.channels_last)
    optimizer, step, fresh = adamw(vae.parameters(), device, weight_decay=1e-4), 0, 0
    if state:
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step, fresh = state["step"], state["fresh"]
    elif args.pieces and (notes := piece_notes(args.pieces, "vae")) is not None:
        vae.load_state_dict(load_pieces(args.pieces, "vae"))
        step, clock.used = notes["step"], notes["seconds"]
        if clock.progress(step) >= 1:
            save_checkpoint(dict(vae=vae.state_dict(), step=step, tiny=args.tiny), args.run / "vae.pt")
            return True
        fresh = step  # its optimizer starts anew
    scenes = to_device(many_scenes(args.data, args.seed + 500, 6 if args.tiny else TRAIN_SCENES, 0), device)
    render = Renderer(args.data, device)
    cut, sizes = (TINY_CUT, TINY_SIZES) if args.tiny else (CUT, WHOLE_SIZES)
    loss_of = torch.compile(vae_loss, dynamic=False) if args.compile else vae_loss

    def advance(step: int, progress: float) -> torch.Tensor:
        chooser = random.Random(args.seed * 7919 + step)
        whole = progress > WHOLE_FROM
        size = chooser.choice(sizes) if whole else (cut, cut)
        count = max(1, args.batch * cut * cut // (size[0] * size[1]))
        rows = torch.randint(len(scenes["rgb"]), (count,), device=device)
        window = None if whole else random_windows(count, device)
        image = render({key: value[rows] for key, value in scenes.items()}, size, window)
        set_rate(optimizer, learning_rate(args.rate, step - fresh, progress, warmup=100, flat=0.5))
        with mixed_precision(device):
            loss, squared = whole_loss(vae, image) if whole else loss_of(vae, image)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % args.log_every == 0:
            log(stage="vae", step=step, psnr=float(10 * torch.log10(4 / squared)))
        return loss

    def save(step: int, complete: bool) -> None:
        set_statistics(vae, render, scenes, 2048 if complete else 256)
        facts = dict(step=step, seconds=clock.seconds, complete=complete)
        if args.out:  # the piece first: nothing else can make up for it
            save_pieces(vae.state_dict(), args.out, "vae", notes=facts)
            limit_folder(args.out, args.out_megabytes)
        weights = dict(vae=vae.state_dict(), optimizer=optimizer.state_dict(), fresh=fresh)
        save_checkpoint(weights | facts, args.run / "vae-train.pt")
        if complete:
            save_checkpoint(dict(vae=vae.state_dict(), step=step, tiny=args.tiny), args.run / "vae.pt")

    complete = training_loop(args, "vae", clock, step, advance, save)
    if complete:
        check(args, vae.eval(), render, log)
    return complete


def run(arguments: list[str] | None = None) -> bool:
    """The stage with command line `arguments`."""
    parser = stage_parser(__doc__, minutes=3.6, seed=1)
    parser.add_argument("--pieces", type=Path, help="go on from saved pieces")
    parser.add_argument("--batch", type=int, default=0, help="cut-outs of 256 pixels a step")
    parser.add_argument("--rate", type=float, default=1e-3)
    args = finish_arguments(parser.parse_args(arguments))
    args.batch = args.batch or (1 if args.tiny else 24)
    return vae_stage(args)


if __name__ == "__main__":
    Signals.watch()
    run()
