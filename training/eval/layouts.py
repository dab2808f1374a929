"""Random pictures for the recogniser, made on the GPU: half of them wilder than training's scenes, so that it
counts what is there and not what is usual; and the wear that pictures out of an autoencoder show.
"""

import random

import torch
import torch.nn.functional as F

from ..captions import COLOURS
from ..scenes import draw_scene, scene_arrays

MOST_OBJECTS = 6  # training's scenes have up to four; a picture with five must be seen as such
CANDIDATES = 24
PALETTE = torch.tensor([rgb for rgb, _ in COLOURS.values()]) / 255


def uniform(shape: tuple[int, ...], low: float, high: float, device) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, device=device)


def spread(count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places for `count` [B] objects: centres [B, 6, 2] in 0..1 and sizes [B, 6], hardly overlapping.

    Of CANDIDATES random choices the one with the widest gaps is kept; the gaps bound the sizes.
    """
    batch, device = len(count), count.device
    places = uniform((batch, CANDIDATES, MOST_OBJECTS, 2), 0.17, 0.83, device)
    slots = torch.arange(MOST_OBJECTS, device=device)
    there = slots < count[:, None]
    both = there[:, :, None] & there[:, None, :] & (slots[:, None] != slots)
    # two squares are apart if they are apart along one axis
    gaps = (places[:, :, :, None] - places[:, :, None]).abs().amax(-1).masked_fill(~both[:, None], 1.0)
    widest, best = gaps.flatten(2).amin(-1).max(1)
    places = places[torch.arange(batch, device=device), best]
    alone = (count == 1)[:, None]
    most = torch.where(alone, 0.98, (widest * 0.97).clamp(0.14, 0.47)[:, None])
    sizes = most * uniform((batch, MOST_OBJECTS), 0.72, 1.0, device)
    sizes = torch.where(alone, uniform((batch, MOST_OBJECTS), 0.25, 0.98, device), sizes)
    room = (0.5 - sizes / 2 + 0.03).clamp(min=0)[..., None]
    return torch.minimum(torch.maximum(places, 0.5 - room), 0.5 + room), sizes


def choose_objects(count: torch.Tensor, kinds: int) -> torch.Tensor:
    """Object indices [B, 6], -1 for none: half the pictures repeat one object, some repeat it beside others."""
    batch, device = len(count), count.device
    index = torch.randint(kinds, (batch, MOST_OBJECTS), device=device)
    mode = torch.rand(batch, 1, device=device)
    slots = torch.arange(MOST_OBJECTS, device=device)
    index = torch.where((mode < 0.45) | ((mode < 0.6) & (slots < 2)), index[:, :1], index)
    return torch.where(slots < count[:, None], index, -1)


def choose_backgrounds(batch: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours [B, 3] in 0..1 and their numbers in COLOURS [B]; -1 for a quarter of any colour at all."""
    number = torch.randint(len(PALETTE), (batch,), device=device)
    rgb = (
        PALETTE.to(device)[number] + uniform((batch, 1), -0.06, 0.06, device) + uniform((batch, 3), -0.02, 0.02, device)
    )
    free = torch.rand(batch, device=device) < 0.25
    rgb = torch.where(free[:, None], torch.rand(batch, 3, device=device), rgb)
    return rgb.clamp(0, 1), torch.where(free, -1, number)


def layout_pool(objects: list[dict], scenes: int, seed: int, device) -> dict[str, torch.Tensor]:
    """Where training's scenes put things: count [S] and place [S, 6, 3] of `scenes` scenes of all kinds."""
    rng = random.Random(seed)
    drawn = [draw_scene(kind, objects, rng) for _ in range(scenes // 4) for kind in ("one", "many", "many", "pair")]
    arrays = {key: torch.from_numpy(value).to(device) for key, value in scene_arrays(drawn).items()}
    place = F.pad(arrays["place"], (0, 0, 0, MOST_OBJECTS - arrays["place"].shape[1]), value=0.5)
    return dict(count=(arrays["index"] >= 0).sum(1), place=place)


def random_arrays(batch: int, kinds: int, pool: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What scenes.Renderer draws, for `kinds` objects: index [B, 6], place [B, 6, 3], rgb [B, 3]; background [B].

    Half the pictures are laid out like one of `pool`, the others freely, with up to six objects.
    """
    device = pool["place"].device
    share = torch.tensor([0.04, 0.26, 0.24, 0.18, 0.16, 0.08, 0.04], device=device)
    count = torch.multinomial(share, batch, replacement=True)
    centres, sizes = spread(count)
    place = torch.cat([centres, sizes[..., None]], -1)
    rows = torch.randint(len(pool["count"]), (batch,), device=device)
    usual = torch.rand(batch, device=device) < 0.5
    count = torch.where(usual, pool["count"][rows], count)
    place = torch.where(usual[:, None, None], pool["place"][rows], place)
    rgb, background = choose_backgrounds(batch, device)
    return dict(index=choose_objects(count, kinds), place=place, rgb=rgb, background=background)


def bend(image: torch.Tensor, amount: float) -> torch.Tensor:
    """Images [B, 3, H, W] with outlines bent smoothly by up to about `amount` of their width."""
    batch, _, height, width = image.shape
    eye = torch.eye(2, 3, device=image.device).expand(batch, -1, -1)
    grid = F.affine_grid(eye, [batch, 3, height, width], align_corners=False)
    shift = F.interpolate(
        torch.randn(batch, 2, 9, 9, device=image.device) * amount, (height, width), mode="bicubic", align_corners=True
    )
    return F.grid_sample(image, grid + shift.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)


def soften(image: torch.Tensor) -> torch.Tensor:
    """Images made smaller by up to a half and large again, one factor a batch."""
    height, width = image.shape[-2:]
    factor = float(uniform((), 0.45, 1.0, "cpu"))
    small = F.interpolate(image, (int(height * factor), int(width * factor)), mode="bilinear", antialias=True)
    return F.interpolate(small, (height, width), mode="bicubic", align_corners=False)


def wear(image: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] in -1..1, each a little bent, soft, noisy, blotched and off in colour."""
    batch, device = len(image), image.device
    each = (batch, 1, 1, 1)
    image = bend(image, 0.008)
    image = torch.where(torch.rand(each, device=device) < 0.6, soften(image), image)
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * uniform(each, 0.85, 1.12, device)
    image = image * uniform(each, 0.88, 1.06, device) * uniform((batch, 3, 1, 1), 0.97, 1.03, device)
    image = image + uniform(each, -0.06, 0.06, device)
    for cells in (12, 40):
        blotch = F.interpolate(
            torch.randn(batch, 3, cells, cells, device=device), image.shape[-2:], mode="bilinear", align_corners=False
        )
        image = image + blotch * uniform(each, 0.0, 0.07, device)
    return (image + torch.randn_like(image) * uniform(each, 0.0, 0.06, device)).clamp(-1, 1)
