"""The recogniser's network: which objects are where in a picture, and on which background.

A convolutional network with a cell for every 16 pixels. Each cell says whether an object's centre lies in it
("Objects as Points", arXiv 1904.07850) and which object that is; all cells together name the background.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..captions import COLOURS
from .judge import Detection, Seen

CELL = 16
CENTRE_SCORE = 0.4  # from here on a cell holds an object's centre
NAME_SCORE = 0.5  # below that an object is none that the recogniser knows
PEAK_WIDTH = 0.8  # cells around a centre that are not punished for being near it


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.norm_two(self.two(F.relu(self.norm_one(self.one(x))))))


def halve(narrow: int, wide: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)
    )


class Detector(nn.Module):
    """Pictures [B, 3, H, W] in -1..1, H and W multiples of 32; h = H/16, w = W/16. Trained on side x side."""

    def __init__(self, kinds: int, width: int = 48, side: int = 256):
        super().__init__()
        self.side = side
        deep = 6 * width
        self.fine = nn.Sequential(
            halve(3, width),
            halve(width, 2 * width),
            Block(2 * width),
            halve(2 * width, 4 * width),
            Block(4 * width),
            Block(4 * width),
            halve(4 * width, deep),
            Block(deep),
            Block(deep),
        )
        self.coarse = nn.Sequential(halve(deep, deep), Block(deep), Block(deep))  # sees the whole picture
        self.join = Block(deep)
        self.centre = nn.Conv2d(deep, 1, 1)
        self.name = nn.Linear(deep, kinds)
        self.ground = nn.Sequential(nn.Conv2d(deep + 3, 128, 1), nn.ReLU(), nn.Conv2d(128, len(COLOURS) + 1, 1))
        nn.init.constant_(self.centre.bias, -4.0)  # centres are rare

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features [B, D, h, w], centre logits [B, h, w], background logits [B, colours], all float32 but the first."""
        features = self.fine(image)
        features = self.join(features + F.interpolate(self.coarse(features), scale_factor=2.0))
        centres = self.centre(features)[:, 0].float()
        mean_colour = F.avg_pool2d(image, CELL).to(features.dtype)
        ground = self.ground(torch.cat([features, mean_colour], 1)).float().flatten(2)
        weight = ground[:, -1:].softmax(-1)  # cells that show background count
        return features, centres, (ground[:, :-1] * weight).sum(-1)


def near_cells(arrays: dict[str, torch.Tensor], height: int, width: int) -> tuple[torch.Tensor, ...]:
    """(picture, row, column, object) of the cells around every object's centre, as four index vectors."""
    there = arrays["index"] >= 0
    picture = there.nonzero()[:, 0]
    centre = (arrays["place"][there][:, :2] * centre_scale(height, width, there.device)).long()
    step = torch.tensor([-1, 0, 1], device=there.device)
    around = torch.cartesian_prod(step, step)
    cells = centre[:, None] + around  # [N, 9, 2] as x, y
    inside = ((cells >= 0) & (cells < centre_scale(height, width, there.device))).all(-1)
    cells = cells[inside]
    repeat = inside.sum(1)
    return (
        picture.repeat_interleave(repeat),
        cells[:, 1],
        cells[:, 0],
        arrays["index"][there].repeat_interleave(repeat),
    )


def centre_scale(height: int, width: int, device) -> torch.Tensor:
    return torch.tensor([width, height], device=device)


def centre_target(arrays: dict[str, torch.Tensor], height: int, width: int) -> torch.Tensor:
    """[B, h, w]: 1 in the cell of every centre, falling off around it."""
    device = arrays["place"].device
    centre = (arrays["place"][..., :2] * centre_scale(height, width, device)).long()
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width, device=device)
    x, y = centre[..., 0, None, None], centre[..., 1, None, None]
    near = torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * PEAK_WIDTH**2))  # [B, slots, h, w]
    return (near * (arrays["index"] >= 0)[..., None, None]).amax(1)


def centre_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Focal loss of "Objects as Points", an average over the objects."""
    hit = target == 1
    chance = logits.sigmoid()
    right = (1 - chance) ** 2 * F.logsigmoid(logits) * hit
    wrong = (1 - target) ** 4 * chance**2 * F.logsigmoid(-logits) * ~hit
    return -(right + wrong).sum() / hit.sum().clamp(min=1)


def loss_of(detector: Detector, seen: tuple[torch.Tensor, ...], arrays: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss of what `detector` saw in the pictures of `arrays` (layouts.random_arrays)."""
    features, centres, ground = seen
    height, width = centres.shape[-2:]
    picture, row, column, item = near_cells(arrays, height, width)
    names = detector.name(features[picture, :, row, column]).float()
    # a sum over a count: a batch of empty pictures gives 0, not NaN
    name_loss = F.cross_entropy(names, item.long(), reduction="sum") / max(len(item), 1)
    known = arrays["background"] >= 0
    ground_loss = F.cross_entropy(ground[known], arrays["background"][known], reduction="sum") / known.sum().clamp(
        min=1
    )
    return centre_loss(centres, centre_target(arrays, height, width)) + name_loss + 0.5 * ground_loss


def fit(image: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures of any size and shape, resized to about side² pixels with sides that are multiples of 32.

    Objects are recognised at the sizes that they had in training.
    """
    height, width = image.shape[-2:]
    scale = side / (height * width) ** 0.5
    size = tuple(max(1, round(side * scale / 32)) * 32 for side in (height, width))
    if size == (height, width):
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)


@torch.no_grad()
def look(detector: Detector, names: list[str], image: torch.Tensor) -> list[Seen]:
    """What is in pictures [B, 3, H, W] in -1..1 of any size; `names` are the objects' `hex`."""
    colours = list(COLOURS)
    features, centres, ground = detector(fit(image, detector.side))
    height, width = centres.shape[-2:]
    chance = centres.sigmoid()
    peak = (chance > CENTRE_SCORE) & (chance == F.max_pool2d(chance[:, None], 3, stride=1, padding=1)[:, 0])
    picture, row, column = peak.nonzero(as_tuple=True)
    score, item = detector.name(features[picture, :, row, column]).float().softmax(-1).max(-1)
    found: list[list[Detection]] = [[] for _ in range(len(image))]
    for at, y, x, name, sure in zip(*(v.tolist() for v in (picture, row, column, item, score)), strict=True):
        known = names[name] if sure >= NAME_SCORE else ""
        found[at].append(Detection(known, (x + 0.5) / width, (y + 0.5) / height))
    backgrounds = ground.argmax(-1).tolist()
    return [Seen(tuple(items), colours[number]) for items, number in zip(found, backgrounds, strict=True)]
