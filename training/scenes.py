"""Random scenes: which objects stand where, and their rendering on the GPU.

A scene has up to four placed sprites on a coloured background with a soft shadow. Everything is
measured in canvas units (0..1, y down). Rendering happens at twice the size and is averaged down.
"""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .captions import COLOURS
from .eval.held_out import is_held_out

SLOTS = 4
MOST_DRAWS = 1000
SPRITE = 192  # stored sprite size, of which PADDING pixels on every side are empty (room for the shadow)
PADDING = 12
PASTELS = [(244, 240, 232), (236, 240, 248), (246, 236, 242), (236, 246, 240), (242, 242, 244), (250, 250, 250)]


def load_objects(folder: Path) -> list[dict]:
    """The records of objects.json (see prepare.py)."""
    return json.loads((folder / "objects.json").read_text("utf-8"))


def random_scene(objects: list[dict], rng: random.Random) -> dict:
    """A scene for training: as `draw_scene`, without what the benchmark holds out (eval/held_out.py)."""
    draw = rng.random()
    kind = "one" if draw < 0.5 else "many" if draw < 0.7 else "pair"
    for _ in range(MOST_DRAWS):
        scene = draw_scene(kind, objects, rng)
        if not is_held_out([item["hex"] for item in scene["objects"]], scene["count"], scene["background"]):
            return scene
    raise ValueError(f"{kind}: expected a scene that is not held out, found none of {len(objects)} objects")


def draw_scene(kind: str, objects: list[dict], rng: random.Random) -> dict:
    """Any scene of a kind, as captions.py describes it, plus `slots` (object index, x, y, size) and `rgb`."""
    scene = dict(kind=kind, count=1, relation=None, size=None)

    def jitter(amount: float) -> float:
        return rng.uniform(-amount, amount)

    if kind == "one":
        chosen = [rng.randrange(len(objects))]
        if rng.random() < 0.14:
            scene["size"] = rng.choice(["small", "big"])
        size = {None: (0.62, 0.86), "small": (0.28, 0.40), "big": (0.88, 0.98)}[scene["size"]]
        size = rng.uniform(*size)
        room = (1 - size) / 2 * 0.35
        places = [(0.5 + jitter(room), 0.5 + jitter(room), size)]
    elif kind == "many":
        chosen = [rng.randrange(len(objects))]
        scene["count"] = rng.choice([2, 2, 3, 3, 4])
        if scene["count"] == 2:
            spots, size = [(0.28, 0.5), (0.72, 0.5)], rng.uniform(0.38, 0.45)
        elif scene["count"] == 3 and rng.random() < 0.3:
            spots, size = [(0.19, 0.5), (0.5, 0.5), (0.81, 0.5)], rng.uniform(0.27, 0.31)
        elif scene["count"] == 3:
            spots, size = [(0.5, 0.28), (0.28, 0.72), (0.72, 0.72)], rng.uniform(0.38, 0.43)
        else:
            spots, size = [(0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)], rng.uniform(0.37, 0.43)
        places = [(x + jitter(0.015), y + jitter(0.015), size) for x, y in spots]
    else:
        chosen = rng.sample(range(len(objects)), 2)
        relation = rng.choice(["left", "right", "above", "below", "and", "and", "beside"])
        scene["relation"] = relation
        size = rng.uniform(0.40, 0.47)
        near, far = 0.27 + jitter(0.01), 0.73 + jitter(0.01)
        spots = {
            "left": [(near, 0.5), (far, 0.5)],
            "right": [(far, 0.5), (near, 0.5)],
            "above": [(0.5, near), (0.5, far)],
            "below": [(0.5, far), (0.5, near)],
        }
        spots = spots.get(relation, spots["left"])
        places = [(x + jitter(0.015), y + jitter(0.015), size * rng.uniform(0.95, 1.05)) for x, y in spots]
    indices = chosen * scene["count"] if kind == "many" else chosen
    scene["objects"] = [objects[index] for index in chosen]
    scene["slots"] = [(index, *place) for index, place in zip(indices, places, strict=False)]

    if rng.random() < 0.28:
        scene["background"], base, shade = None, rng.choice(PASTELS), 4
    else:
        scene["background"] = rng.choice(list(COLOURS))
        base, shade = COLOURS[scene["background"]][0], 12
    light = jitter(shade)
    scene["rgb"] = [min(255.0, max(0.0, channel + light + jitter(shade / 3))) for channel in base]
    return scene


def scene_arrays(scenes: list[dict]) -> dict[str, np.ndarray]:
    """Scenes as arrays: index [B, 4] int16 (-1 = empty), place [B, 4, 3] float32, rgb [B, 3] float32 in 0..1."""
    index = np.full((len(scenes), SLOTS), -1, np.int16)
    place = np.full((len(scenes), SLOTS, 3), 0.5, np.float32)
    for row, scene in enumerate(scenes):
        for slot, (sprite, *where) in enumerate(scene["slots"]):
            index[row, slot] = sprite
            place[row, slot] = where
    rgb = np.array([scene["rgb"] for scene in scenes], np.float32) / 255
    return dict(index=index, place=place, rgb=rgb)


def _sample(source, across, down, x, y, half):
    """Sprites [B, C, S, S] resampled onto canvas axes across [B, w], down [B, h]; x, y, half [B] place them."""
    gx = ((across - x[:, None]) / half[:, None])[:, None, :].expand(-1, down.shape[1], -1)
    gy = ((down - y[:, None]) / half[:, None])[:, :, None].expand(-1, -1, across.shape[1])
    grid = torch.stack([gx, gy], dim=-1).to(source.dtype)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def canvas_axes(height: int, width: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Canvas coordinates of pixel centres, across [width] and down [height].

    The shorter side spans 0..1; the longer one reaches equally far beyond on both ends, so a picture that
    is not square shows the square scene in the middle of more background.
    """
    short = min(height, width)
    across = 0.5 + (torch.arange(width, device=device, dtype=torch.float32) + 0.5 - width / 2) / short
    down = 0.5 + (torch.arange(height, device=device, dtype=torch.float32) + 0.5 - height / 2) / short
    return across, down


def load_sprite(path: Path) -> np.ndarray:
    """An image file as uint8 [SPRITE, SPRITE, 4], alpha premultiplied, with an empty margin of PADDING."""
    inner = SPRITE - 2 * PADDING
    image = Image.open(path).convert("RGBa").resize((inner, inner), Image.Resampling.LANCZOS)
    return np.pad(np.asarray(image), ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))


class Renderer:
    """Draws scenes from the sprites of a data folder."""

    def __init__(self, folder: Path, device, dtype=torch.float32):
        files = [folder / "sprites" / f"{item['hex']}.webp" for item in load_objects(folder)]
        with ThreadPoolExecutor() as pool:
            sprites = list(pool.map(load_sprite, files))
        sprites = torch.from_numpy(np.stack(sprites)).to(device).permute(0, 3, 1, 2)
        alpha = sprites[:, 3:].float() / 255
        for _ in range(3):  # three box blurs, nearly a Gaussian
            alpha = F.avg_pool2d(alpha, 9, stride=1, padding=4)
        shadow = (alpha * 255).round().to(torch.uint8)
        self.sprites = torch.cat([sprites, shadow], dim=1)  # [N, 5, 192, 192] uint8: RGB, alpha, shadow
        self.device, self.dtype = device, dtype

    @torch.no_grad()
    def __call__(
        self,
        arrays: dict[str, torch.Tensor],
        size: int | tuple[int, int] = 256,
        window: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Images [B, 3, height, width] in -1..1; `size` is the height and width, or both if one number.

        With `window` [B, 3] the pictures are square cut-outs instead: left edge, top edge and side in canvas
        units, which cost no more than whole pictures of that size.
        """
        height, width = (size, size) if isinstance(size, int) else size
        count = len(arrays["rgb"])
        across, down = (axis.expand(count, -1) for axis in canvas_axes(2 * height, 2 * width, self.device))
        if window is not None:
            left, top, side = window[:, :, None].unbind(1)
            across, down = left + across * side, top + down * side
        light = (0.03 - 0.08 * down.clamp(0, 1))[:, None, :, None]  # from above
        canvas = (arrays["rgb"][:, :, None, None] + light).clamp(0, 1).expand(-1, -1, -1, 2 * width).to(self.dtype)
        for slot in range(arrays["index"].shape[1]):
            rows = (arrays["index"][:, slot] >= 0).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            sprite = self.sprites[arrays["index"][rows, slot].long()].to(self.dtype) / 255
            x, y, wide = arrays["place"][rows, slot].unbind(-1)
            half = wide * SPRITE / (SPRITE - 2 * PADDING) / 2
            shade = _sample(sprite[:, 4:], across[rows], down[rows], x, y + 0.05 * wide, half)
            front = _sample(sprite[:, :4], across[rows], down[rows], x, y, half)
            behind = canvas[rows] * (1 - 0.30 * shade)
            canvas = canvas.index_copy(0, rows, behind * (1 - front[:, 3:]) + front[:, :3])
        return F.avg_pool2d(canvas, 2) * 2 - 1
