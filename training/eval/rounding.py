"""What the roundings of the page's fast matrix products cost: PocketEval and differences of the pictures.

    python -m training.eval.rounding --data DIR --run DIR --pipeline FOLDER -o rounding.json

Variants of the kernel `linear` convert the rows of a packed product before they multiply
(webgpu_kernels/operands.py). Here torch draws every prompt in float32 and once more with each conversion, which
is done to the same products as on the page, those of the transformer's packed weights:

    f16         rows as float16: variants f16 and matrix_f16
    int8        8 bits with a scale a row and 128 columns: variant matrix_int8_groups
    int8_rows   8 bits with a scale a row, and W as 8 bits with a scale a row: int8_rows, matrix_int8

For each kind: its score and its share of the score in float32, by the same prompts and seeds; PSNR of its
pictures as PNG files keep them; relative error of the last latents.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..quantize import GROUP, packed_linears
from .prompts import SEEDS, part, sha256
from .score import STEPS, draw_together, in_parts, load_judge, open_pipeline
from .table import LEVEL, compare, summarise

KINDS = ("f16", "int8", "int8_rows")
F16_MAX = 65_504.0
LEAST = 1e-30  # stands for the greatest magnitude of zeros


def eight_bit_steps(values: torch.Tensor) -> torch.Tensor:
    """Values [..., n] rounded to multiples of (the greatest magnitude of the n) / 127, ties to even."""
    most = values.abs().amax(-1, keepdim=True).clamp(min=LEAST)
    return (values * (127 / most)).round().clamp(-127, 127) * (most / 127)


def rounded_rows(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Rows [..., K] as a kind keeps them, as float32."""
    if kind == "f16":
        return x.clamp(-F16_MAX, F16_MAX).half().float()
    if kind == "int8":
        return eight_bit_steps(x.unflatten(-1, (-1, GROUP))).flatten(-2)
    return eight_bit_steps(x)


@contextmanager
def products_as(transformer: nn.Module, kind: str | None) -> Iterator[None]:
    """Inside, packed products take operands rounded as `kind` rounds them; None: as they are."""
    linears = list(packed_linears(transformer).values()) if kind else []
    weights = [linear.weight.data for linear in linears]
    hooks = [linear.register_forward_pre_hook(lambda _, given: (rounded_rows(given[0], kind),)) for linear in linears]
    try:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight.data = eight_bit_steps(weight) if kind == "int8_rows" else weight
        yield
    finally:
        for linear, weight, hook in zip(linears, weights, hooks, strict=True):
            linear.weight.data = weight
            hook.remove()


def psnr(images: torch.Tensor, others: torch.Tensor) -> list[float]:
    """Decibels of each picture [3, H, W] in -1..1 against the other; of equal ones infinity."""
    error = ((images - others) / 2).square().flatten(1).double().mean(1)
    return (-10 * error.log10()).tolist()


def relative_error(values: torch.Tensor, others: torch.Tensor) -> list[float]:
    """‖a − b‖ / ‖b‖ of each [tokens, channels]."""
    difference, size = ((values - others).flatten(1).norm(dim=1), others.flatten(1).norm(dim=1))
    return (difference / size).tolist()


def measure(args: argparse.Namespace) -> dict:
    """Draw and judge; {benchmark, source, steps, recogniser, kinds: {name: {table, …}}, pictures: {name: […]}}."""
    judge, prompts, known = load_judge(args)
    asked = [(prompt, seed) for prompt in part(prompts, args.per_class) for seed in args.seeds]
    pipeline = open_pipeline(args.pipeline, args.device)
    found: dict[str, list[dict]] = {kind: [] for kind in ("f32", *args.kinds)}
    for some in in_parts(asked, args.batch):
        exact_images, exact_latents = draw_together(pipeline, some, tuple(args.size))
        found["f32"] += judge(some, exact_images)
        for kind in args.kinds:
            with products_as(pipeline.transformer, kind):
                images, latents = draw_together(pipeline, some, tuple(args.size))
            differences = zip(psnr(images, exact_images), relative_error(latents, exact_latents), strict=True)
            found[kind] += [
                verdict | {"psnr": decibels, "latents": error}
                for verdict, (decibels, error) in zip(judge(some, images), differences, strict=True)
            ]
    kinds = {"f32": {"table": summarise(found["f32"])}}
    kinds |= {kind: summary(found[kind], found["f32"]) for kind in args.kinds}
    source = dict(benchmark=sha256(prompts), source=str(args.pipeline), steps=STEPS, size=list(args.size))
    return dict(**source, recogniser=known, kinds=kinds, pictures=found)


def summary(pictures: list[dict], exact: list[dict]) -> dict:
    """One kind's numbers: {table, against, psnr: {median, lowest, of}, latents: {median, greatest}}."""
    lowest = min(pictures, key=lambda one: one["psnr"])
    errors = [one["latents"] for one in pictures]
    decibels = dict(median=statistics.median(one["psnr"] for one in pictures), lowest=lowest["psnr"])
    return dict(
        table=summarise(pictures),
        against=compare(pictures, exact),
        psnr=decibels | {"of": f"{lowest['id']}-{lowest['seed']}"},
        latents=dict(median=statistics.median(errors), greatest=max(errors)),
    )


def to_text(kinds: dict[str, dict]) -> str:
    """The table in Markdown."""
    lines = [
        f"| operands | score, {LEVEL} % interval | share of f32's | PSNR median (lowest) | latents median (greatest) |",
        "|---|---|---|---|---|",
    ]
    for kind, row in kinds.items():
        mean, low, high = (100 * row["table"]["overall"][key] for key in ("mean", "low", "high"))
        cells = [kind, f"{mean:.1f} % ({low:.1f} to {high:.1f})"]
        if "against" in row:
            share = {key: f"{100 * value:.1f}" for key, value in row["against"]["share"].items()}
            cells.append(f"{share['mean']} % ({share['low']} to {share['high']})")
            cells.append("{median:.1f} dB ({lowest:.1f})".format(**row["psnr"]))
            cells.append("{median:.1e} ({greatest:.1e})".format(**row["latents"]))
        lines.append("| " + " | ".join(cells + [""] * (5 - len(cells))) + " |")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="holds recogniser.pt")
    parser.add_argument("--pipeline", type=Path, required=True, help="a diffusers folder")
    parser.add_argument("-o", "--out", type=Path, required=True, help="write the numbers here, as JSON")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--per-class", type=int, help="only so many prompts of each class")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=96)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.backends.cudnn.allow_tf32 = False  # float32 convolutions, as on the page
    result = measure(args)
    print(to_text(result["kinds"]))
    args.out.write_text(json.dumps(result, ensure_ascii=False, indent=1), "utf-8")


if __name__ == "__main__":
    main()
