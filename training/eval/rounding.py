"""What the roundings of the page's fast matrix products and attention cost: PocketEval and differences of pictures.

    python -m training.eval.rounding --data DIR --run DIR --pipeline FOLDER -o rounding.json

Variants of the kernels `linear` and `attention` round operands before they multiply (webgpu_kernels/operands.py).
Here torch draws every prompt in float32 and once more with each kind of rounding, which is done where the page
does it, in the products of the transformer's packed weights and in the transformer's attention:

    f16              products: rows as float16 (variants f16 and matrix_f16)
    int8_groups      products: 8 bits with a scale a row and 128 columns (matrix_int8_groups)
    int8_rows        products: 8 bits with a scale a row, and W as 8 bits with a scale a row (int8_rows, matrix_int8)
    attention_int8   attention: q, k, v and the weights of keys as 8 bits, see `eight_bit_attention` (int8)
    all_int8         int8_rows and attention_int8

For each kind: its score and its share of the score in float32, by the same prompts and seeds; PSNR of its
pictures as PNG files keep them; relative error of the last latents.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from ..quantize import GROUP, packed_linears
from .prompts import SEEDS, part, sha256
from .score import STEPS, draw_together, in_parts, load_judge, open_pipeline
from .table import LEVEL, compare, summarise

# Kind: how operands of products are rounded, whether those of attention are.
KINDS: dict[str, tuple[str | None, bool]] = {
    "f16": ("f16", False),
    "int8_groups": ("int8_groups", False),
    "int8_rows": ("int8_rows", False),
    "attention_int8": (None, True),
    "all_int8": ("int8_rows", True),
}
F16_MAX = 65_504.0
KEYS = 64  # a tile of them shares scales of values, and its weights a top
WEIGHT_STEPS = 255  # the code of a weight of 1
LEAST = 1e-30  # stands for the greatest magnitude of zeros


def eight_bit_codes(values: torch.Tensor, axis: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes -127..127 as float32, ties to even, and their steps, (the greatest magnitude along `axis`) / 127."""
    most = values.abs().amax(axis, keepdim=True).clamp(min=LEAST)
    return (values * (127 / most)).round().clamp(-127, 127), most / 127


def eight_bit_steps(values: torch.Tensor) -> torch.Tensor:
    """Values [..., n] rounded to multiples of (the greatest magnitude of the n) / 127, ties to even."""
    codes, step = eight_bit_codes(values)
    return codes * step


def rounded_rows(x: torch.Tensor, rows: str) -> torch.Tensor:
    """Rows [..., K] as products of f16, int8_groups or int8_rows keep them, as float32."""
    if rows == "f16":
        return x.clamp(-F16_MAX, F16_MAX).half().float()
    if rows == "int8_groups":
        return eight_bit_steps(x.unflatten(-1, (-1, GROUP))).flatten(-2)
    return eight_bit_steps(x)


def eight_bit_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **_
) -> torch.Tensor:
    """What the variant int8 of `attention` makes of float32 [B, tokens, heads, channels], in its place in diffusers.

    Steps of queries and keys are those of a token and head, of values those of a channel and KEYS keys. Weights are
    codes 0..WEIGHT_STEPS of exp(score - the tile's greatest score), but their sum, which y is divided by, is that of
    the weights before rounding. Sums of products of codes stay below 2^24, so they are exact here as in integers.

    Raises:
        ValueError: with a mask, which pictures do not need.
    """
    if attn_mask is not None:
        raise ValueError("attention in int8: expected no mask, found one")
    query, key, value = (operand.transpose(1, 2) for operand in (query, key, value))
    (q, q_step), (k, k_step) = eight_bit_codes(query), eight_bit_codes(key)
    scores = (q @ k.mT) * q_step * k_step.mT * query.shape[-1] ** -0.5
    top = scores.amax(-1, keepdim=True)
    y, total = torch.zeros_like(query), torch.zeros_like(top)
    for some, values in zip(scores.split(KEYS, -1), value.split(KEYS, -2), strict=True):
        tile_top = some.amax(-1, keepdim=True)
        weights = WEIGHT_STEPS * (some - tile_top).exp()
        share = (tile_top - top).exp()
        v, v_step = eight_bit_codes(values, -2)
        y += share * (weights.round() @ v) * v_step
        total += share * weights.sum(-1, keepdim=True)
    return (y / total).transpose(1, 2)


@contextmanager
def attention_in_int8() -> Iterator[None]:
    """Inside, FLUX.2's transformers compute attention by `eight_bit_attention`."""
    from diffusers.models.transformers import transformer_flux2  # slow to import

    with mock.patch.object(transformer_flux2, "dispatch_attention_fn", eight_bit_attention):
        yield


@contextmanager
def products_as(transformer: nn.Module, rows: str) -> Iterator[None]:
    """Inside, packed products take operands rounded as `rounded_rows` does it, for int8_rows weights, too."""
    linears = list(packed_linears(transformer).values())
    weights = [linear.weight.data for linear in linears]
    hooks = [linear.register_forward_pre_hook(lambda _, given: (rounded_rows(given[0], rows),)) for linear in linears]
    try:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight.data = eight_bit_steps(weight) if rows == "int8_rows" else weight
        yield
    finally:
        for linear, weight, hook in zip(linears, weights, hooks, strict=True):
            linear.weight.data = weight
            hook.remove()


@contextmanager
def rounded_as(transformer: nn.Module, kind: str) -> Iterator[None]:
    """Inside, `transformer` computes with the roundings of `kind`, one of KINDS."""
    rows, attention = KINDS[kind]
    with products_as(transformer, rows) if rows else nullcontext(), attention_in_int8() if attention else nullcontext():
        yield


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
            with rounded_as(pipeline.transformer, kind):
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
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=tuple(KINDS))
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
