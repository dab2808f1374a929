"""Stage 6: record guided trajectories of the teacher for the students.

    python -m training.rollouts --data DIR --run DIR

Writes run/rollouts.pt: for every size `states` [R, 5, 64, h, w] float16 at the pipeline's own noise levels for
that size and `tokens` [R, 48] int16. Between two of those levels the teacher makes several second-order
steps. Guidance acts in a limited interval of levels, which keeps colours from saturating.
"""

import argparse
import random
from collections import defaultdict

import torch

from .buckets import NATIVE, batch_for, load_buckets
from .clock import Clock, Signals
from .common import Log, finish_arguments, mixed_precision, seed_step, stage_parser
from .flow import Velocity, fine_sigmas, pipeline_sigmas, sample
from .model import build_text_encoder, build_transformer, encode_prompt
from .storage import load_checkpoint, need, save_checkpoint
from .teacher import empty_prompt
from .tokenizer import load_tokenizer

PARTS = (2, 2, 2, 4)  # teacher steps inside each of the four sampler steps
INTERVAL = (0.25, 0.995)  # noise levels with guidance
OTHERS_SHARE = 0.3


@torch.no_grad()
def record(args: argparse.Namespace) -> bool:
    """Record until the time is over; returns whether that was the end. A second call adds to the first."""
    device, log = args.device, Log(args.run / "log.jsonl")
    done = load_checkpoint(args.run / "rollouts.pt") or dict(buckets={}, batches=0, seconds=0.0, complete=False)
    if done["complete"]:
        return True
    clock = Clock(args.minutes, args.steps, done["seconds"], args.until, reserve=15)
    tokenizer = load_tokenizer(args.data)
    pad = tokenizer.pad_token_id
    final = need(args.run / "teacher-final.pt", "teacher")
    transformer = build_transformer(args.tiny).to(device).eval()
    transformer.load_state_dict(final["transformer"])
    text_encoder = build_text_encoder(pad, tokenizer.eos_token_id, args.tiny).to(device).eval()
    text_encoder.load_state_dict(final["text"])
    velocity, buckets = Velocity(transformer, args.compile), load_buckets(args.run, device, with_latents=False)
    sizes = [size for size in sorted(buckets) if size[0] >= 192 and size != NATIVE]
    with mixed_precision(device):
        none = encode_prompt(text_encoder, empty_prompt(tokenizer, device)[None], pad)
    made, batches = defaultdict(list), done["batches"]
    while not clock.stop(batches):
        seed_step(args.seed, batches)
        chooser = random.Random(args.seed * 7919 + batches)
        size = chooser.choice(sizes) if batches and sizes and chooser.random() < OTHERS_SHARE else NATIVE
        height, width = size[0] // 16, size[1] // 16
        count = batch_for(size, args.batch)
        _, ids = buckets[size].pick(count, 1.0)
        levels, marks = fine_sigmas(pipeline_sigmas(height * width), PARTS)
        with torch.compiler.set_stance("default" if size == NATIVE else "force_eager"):
            with mixed_precision(device):
                text = encode_prompt(text_encoder, ids, pad)
            noise = torch.randn(count, 64, height, width, device=device)
            path = sample(velocity, noise, text, levels, none, args.guidance, True, INTERVAL)
        made[size].append((torch.stack([path[mark] for mark in marks], dim=1).half().cpu(), ids.short().cpu()))
        batches += 1
    for size, parts in made.items():
        states, tokens = (torch.cat(values) for values in zip(*parts, strict=True))
        if size in done["buckets"]:
            states = torch.cat([done["buckets"][size]["states"], states])
            tokens = torch.cat([done["buckets"][size]["tokens"], tokens])
        done["buckets"][size] = dict(states=states, tokens=tokens)
    facts = dict(batches=batches, seconds=clock.seconds, complete=clock.progress(batches) >= 1)
    save_checkpoint(done | facts, args.run / "rollouts.pt")
    for size, part in done["buckets"].items():
        spread = float(part["states"][:1000, -1].float().std())
        log(stage="rollouts", size=str(size), count=len(part["tokens"]), guidance=args.guidance, std=spread)
    return facts["complete"]


def run(arguments: list[str] | None = None) -> bool:
    """The stage with command line `arguments`; `--steps` counts batches here."""
    parser = stage_parser(__doc__, minutes=1.4, seed=79, out=False)
    parser.add_argument("--batch", type=int, default=0, help="pictures of 256x256 at once")
    parser.add_argument("--guidance", type=float, default=3.0)
    args = finish_arguments(parser.parse_args(arguments))
    args.batch = args.batch or (4 if args.tiny else 512)
    return record(args)


if __name__ == "__main__":
    Signals.watch()
    run()
