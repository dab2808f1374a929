"""Which picture sizes and kinds of scene are trained when.

Text-to-image models are commonly trained at a low resolution first, where a step is cheap, and then at
the final one (Stable Diffusion; "PixArt-alpha", arXiv 2310.00426): what a word looks like is learned at
128x128 at a third of the price of 256x256, and the other sizes need only little at the end. Within a step
all pictures have one size; the batch is chosen so that every size costs about the same.
"""

import random
from pathlib import Path

import torch

from .model import TEXT_LENGTH

NATIVE, SMALL = (256, 256), (128, 128)
OTHERS = ((192, 192), (384, 384), (512, 512), (256, 384), (384, 256))  # height, width; trained uncompiled
SCENES = {NATIVE: 100_000, SMALL: 60_000, **dict.fromkeys(OTHERS, 5_000), (512, 512): 2_500}
TINY_SCENES = {NATIVE: 12, SMALL: 12, (192, 192): 6, (256, 384): 4}
KINDS = ("one", "many", "pair")
SMALL_UNTIL, OTHERS_FROM, OTHERS_SHARE = 0.30, 0.60, 0.40
KIND_SHARES = ((0.35, (0.70, 0.12, 0.18)), (1.01, (0.46, 0.22, 0.32)))  # until this progress: these shares


def cache_name(size: tuple[int, int]) -> str:
    """File name of a bucket's cached latents."""
    return f"cache-{size[0]}x{size[1]}.pt"


def pick_size(progress: float, chooser: random.Random, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size of the next step's pictures: small first, then native, at the end others, too."""
    if progress < SMALL_UNTIL:
        return SMALL
    others = [size for size in sizes if size not in (NATIVE, SMALL)]
    if progress > OTHERS_FROM and others and chooser.random() < OTHERS_SHARE:
        return chooser.choice(others)
    return NATIVE


def batch_for(size: tuple[int, int], batch: int) -> int:
    """Pictures of `size` that cost about as much as `batch` native ones; a multiple of 8 where that is possible."""

    def tokens(height: int, width: int) -> int:
        return height * width // 256 + TEXT_LENGTH

    count = batch * tokens(*NATIVE) // tokens(*size)
    return max(count // 8 * 8, 1) if count >= 8 else max(count, 1)


class Bucket:
    """Cached scenes of one size on the device, drawn by kind.

    `latents` [S, 64, h, w] float16, `tokens` [S, captions, 48] int16, `kind` [S] int8 (index in KINDS).
    """

    def __init__(self, cache: dict[str, torch.Tensor], device, with_latents: bool = True):
        self.latents = cache["latents"].to(device) if with_latents else None
        self.tokens = cache["tokens"].to(device)
        kind = cache["kind"].long()
        self.order = kind.argsort(stable=True).to(device)
        self.counts = torch.bincount(kind, minlength=len(KINDS)).to(device)
        self.starts = self.counts.cumsum(0) - self.counts

    def pick(self, count: int, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Random rows [count] and one caption's tokens [count, 48] int64 each.

        Early on most scenes hold a single object, large and alone, so that names are learned before
        layouts (a curriculum, "Curriculum Learning", Bengio et al. 2009). Objects are drawn uniformly.
        """
        shares = next(shares for end, shares in KIND_SHARES if progress < end)
        device = self.tokens.device
        weights = torch.tensor(shares, device=device) * (self.counts > 0)
        kinds = torch.multinomial(weights, count, replacement=True)
        within = (torch.rand(count, device=device) * self.counts[kinds]).long()
        rows = self.order[self.starts[kinds] + torch.minimum(within, self.counts[kinds] - 1)]
        which = torch.randint(self.tokens.shape[1], (count,), device=device)
        return rows, self.tokens[rows, which].long()

    def draw(self, count: int, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Random latents [count, 64, h, w] float32 and tokens as `pick` gives them."""
        rows, ids = self.pick(count, progress)
        return self.latents[rows].float(), ids


def load_buckets(run: Path, device, with_latents: bool = True) -> dict[tuple[int, int], Bucket]:
    """All cached sizes; the native and the small one must be there."""
    buckets = {}
    for path in sorted(run.glob("cache-*.pt")):
        height, width = path.stem.split("-")[1].split("x")
        cache = torch.load(path, mmap=True)
        buckets[int(height), int(width)] = Bucket(cache, device, with_latents)
    for size in (SMALL, NATIVE):
        if size not in buckets:
            path = run / cache_name(size)
            raise SystemExit(f"{path}: expected it, found no such file; run `python -m training.cache latents` first")
    return buckets
