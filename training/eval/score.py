"""Score PocketEval: draw the prompts with a pipeline, or take pictures from a folder, and count what is right.

    python -m training.eval.score --data DIR --run DIR --pipeline FOLDER -o scores.json
    python -m training.eval.score --data DIR --run DIR --pictures FOLDER -o scores.json --against scores.json

`--pipeline` is a diffusers folder; it draws four steps without guidance, as `Flux2KleinPipeline` does for a
distilled model, many prompts at a time, with the noise that the page has for the same seed. `--pictures`
holds files PROMPT-SEED.png of any size, such as `build.py generate --prompts` writes. `--run` holds
recogniser.pt.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..scenes import load_objects
from .detector import look
from .judge import Seen, satisfies
from .prompts import SEEDS, Prompt, build, part, picture_name, sha256
from .recognise import load
from .table import compare, summarise, to_text

STEPS = 4
Asked = list[tuple[Prompt, int]]  # prompts with seeds


def eight_bits(image: torch.Tensor) -> torch.Tensor:
    """Images in 0..1 as a PNG file keeps them, in -1..1."""
    return (image.float().clamp(0, 1) * 255).round() / 127.5 - 1


def open_pipeline(folder: Path, device: str):
    """The `Flux2KleinPipeline` of a diffusers folder, in float32."""
    from diffusers import Flux2KleinPipeline  # slow to import

    pipeline = Flux2KleinPipeline.from_pretrained(str(folder), dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def draw_together(pipeline, some: Asked, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [B, 3, H, W] in -1..1 and their last latents [B, tokens, channels]; `size` is width, height."""
    from ..model import TEXT_LAYERS, TEXT_LENGTH

    last = {}
    images = pipeline(
        prompt=[prompt.text for prompt, _ in some],
        generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in some],
        width=size[0],
        height=size[1],
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        max_sequence_length=TEXT_LENGTH,
        text_encoder_out_layers=TEXT_LAYERS,
        callback_on_step_end=lambda pipe, step, time, tensors: last.update(tensors) or {},
        output_type="pt",
    ).images
    return eight_bits(images), last["latents"]


def in_parts(asked: Asked, batch: int) -> Iterator[Asked]:
    for first in range(0, len(asked), batch):
        yield asked[first : first + batch]


def draw(
    folder: Path, asked: Asked, size: tuple[int, int], device: str, batch: int
) -> Iterator[tuple[Asked, torch.Tensor]]:
    """Parts of `asked` with their pictures [B, 3, H, W] in -1..1; `size` is width, height."""
    pipeline = open_pipeline(folder, device)
    for some in in_parts(asked, batch):
        yield some, draw_together(pipeline, some, size)[0]


def read(folder: Path, asked: Asked, device: str) -> Iterator[tuple[Asked, torch.Tensor]]:
    """As `draw`, from the files of a folder, one at a time. A missing file stops the run."""
    missing = [name for name in (picture_name(*one) for one in asked) if not (folder / f"{name}.png").exists()]
    if missing:
        raise SystemExit(
            f"{folder}: expected {len(asked)} pictures, found no {missing[0]}.png ({len(missing)} missing)"
        )
    for one in asked:
        with Image.open(folder / f"{picture_name(*one)}.png") as file:
            pixels = np.array(file.convert("RGB"))
        yield [one], eight_bits(torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None] / 255)


def save_pictures(folder: Path, some: Asked, images: torch.Tensor) -> None:
    """Write pictures as `read` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for one, picture in zip(some, pixels, strict=True):
        Image.fromarray(picture).save(folder / f"{picture_name(*one)}.png")


def verdict(prompt: Prompt, seed: int, seen: Seen) -> dict:
    """One picture's line in the scores (table.py), with what was seen."""
    return dict(
        id=prompt.id,
        kind=prompt.kind,
        language=prompt.language,
        group=prompt.group,
        seed=seed,
        passed=satisfies(prompt.truth, seen),
        background=seen.background,
        objects=[{**asdict(item), "x": round(item.x, 3), "y": round(item.y, 3)} for item in seen.objects],
    )


def comparison(against: dict, name: Path) -> str:
    """What table.compare found, as a sentence."""
    place = "inside" if against["inside"] else "outside"
    share = {key: f"{100 * value:.1f}" for key, value in against["share"].items()}
    return (
        f"{100 * against['mean']:.1f} on {against['pictures']} pictures, for which {name} has "
        f"{100 * against['other']:.1f}: {place} its {100 * against['low']:.1f} to {100 * against['high']:.1f}, "
        f"and {share['mean']} % of it ({share['low']} to {share['high']})"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pipeline", type=Path, help="draw with this diffusers folder")
    source.add_argument("--pictures", type=Path, help="score the files PROMPT-SEED.png of this folder")
    parser.add_argument("-o", "--out", type=Path, required=True, help="write the scores here, as JSON")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--per-class", type=int, help="only so many prompts of each class")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--against", type=Path, help="compare with these scores, on the same prompts and seeds")
    parser.add_argument("--save", type=Path, help="write what the pipeline draws into this folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=96)
    return parser.parse_args(argv)


def load_judge(args: argparse.Namespace) -> tuple[Callable[[Asked, torch.Tensor], list[dict]], list[Prompt], dict]:
    """What turns pictures [B, 3, H, W] into verdicts, the benchmark, and the recogniser's accuracies."""
    detector, names, known = load(args.run / "recogniser.pt", args.device)
    objects = load_objects(args.data)
    if [item["hex"] for item in objects] != names:
        raise SystemExit(f"{args.run / 'recogniser.pt'}: expected the objects of {args.data}, found others")

    def judge(some: Asked, images: torch.Tensor) -> list[dict]:
        seen = look(detector, names, images)
        return [verdict(prompt, seed, one) for (prompt, seed), one in zip(some, seen, strict=True)]

    return judge, build(objects), known


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    others = json.loads(args.against.read_text("utf-8")) if args.against else None
    judge, prompts, known = load_judge(args)
    if others and others["benchmark"] != sha256(prompts):
        raise SystemExit(f"{args.against}: expected scores of benchmark {sha256(prompts)}, found {others['benchmark']}")
    asked = [(prompt, seed) for prompt in part(prompts, args.per_class) for seed in args.seeds]
    if args.pipeline:
        pictures = draw(args.pipeline, asked, tuple(args.size), args.device, args.batch)
    else:
        pictures = read(args.pictures, asked, args.device)
    verdicts = []
    for some, images in pictures:
        if args.save:
            save_pictures(args.save, some, images)
        verdicts += judge(some, images)
    table = summarise(verdicts)
    source = str(args.pipeline or args.pictures)
    result = dict(benchmark=sha256(prompts), source=source, steps=STEPS, recogniser=known, table=table)
    print(to_text(table))
    if others:
        result["against"] = against = compare(verdicts, others["pictures"])
        print("\n" + comparison(against, args.against))
    result["pictures"] = verdicts
    args.out.write_text(json.dumps(result, ensure_ascii=False, indent=1), "utf-8")


if __name__ == "__main__":
    main()
