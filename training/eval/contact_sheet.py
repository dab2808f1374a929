"""Pictures that nobody picked: prompts of PocketEval as several models draw them, side by side.

    python -m training.eval.contact_sheet --data DIR --pipelines DENSE TERNARY BINARY -o samples.webp

A row for each class of the benchmark: its prompt 5 in English on the left, its prompt 6 in Chinese on the right,
each drawn once by every model with seed 0. The prompts go to stdout.
"""

import argparse
from pathlib import Path

import torch

from ..scenes import load_objects
from ..sheet import save_grid
from .prompts import CLASSES, Prompt, build
from .score import draw

ENGLISH, CHINESE, SEED = 5, 6, 0


def row_prompts(prompts: list[Prompt]) -> list[tuple[Prompt, Prompt]]:
    """For every class prompt ENGLISH in English and prompt CHINESE in Chinese."""
    by_id = {prompt.id: prompt for prompt in prompts}
    return [(by_id[f"{kind}-{ENGLISH:03}-en"], by_id[f"{kind}-{CHINESE:03}-zh"]) for kind in CLASSES]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pipelines", type=Path, nargs="+", required=True, help="diffusers folders, left to right")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a .webp or .png file")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(argv)
    rows = row_prompts(build(load_objects(args.data)))
    asked = [(prompt, SEED) for row in rows for prompt in row]
    drawn = [
        torch.cat([images.cpu() for _, images in draw(folder, asked, tuple(args.size), args.device, len(asked))])
        for folder in args.pipelines
    ]
    images = torch.stack(drawn, dim=1).flatten(0, 1)  # prompt by prompt, all models
    save_grid(images, args.out, columns=2 * len(args.pipelines), quality=88)
    for row in rows:
        print(" | ".join(prompt.text for prompt in row))


if __name__ == "__main__":
    main()
