"""Many pictures in one."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def grid(images: torch.Tensor, columns: int) -> np.ndarray:
    """Images [B, 3, H, W] in -1..1, row by row, as pixels [rows*H, columns*W, 3] uint8."""
    pixels = ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    count, _, height, width = pixels.shape
    result = torch.zeros(-(-count // columns) * height, columns * width, 3, dtype=torch.uint8)
    for index, image in enumerate(pixels):
        y, x = index // columns * height, index % columns * width
        result[y : y + height, x : x + width] = image.permute(1, 2, 0)
    return result.numpy()


def save_grid(images: torch.Tensor, path: Path, columns: int) -> None:
    """The same as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(images, columns)).save(path)
