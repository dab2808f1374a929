"""Many pictures in one."""

from pathlib import Path

import torch
from PIL import Image


def save_grid(images: torch.Tensor, path: Path, columns: int, **options) -> None:
    """Images [B, 3, H, W] in -1..1, row by row, as one file of the kind that its name says.

    `options` are those of Pillow's `save` for that kind.
    """
    pixels = ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    count, _, height, width = pixels.shape
    grid = torch.zeros(-(-count // columns) * height, columns * width, 3, dtype=torch.uint8)
    for index, image in enumerate(pixels):
        y, x = index // columns * height, index % columns * width
        grid[y : y + height, x : x + width] = image.permute(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid.numpy()).save(path, **options)
