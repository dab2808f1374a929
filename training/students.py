"""Stages 7 to 9: students that need four steps and no guidance: dense, then binary and ternary.

    python -m training.students --kind dense|binary|ternary --data DIR --run DIR [--out DIR]

A student learns, at each of the sampler's four noise levels, the one velocity that carries the teacher's state
to the teacher's state at the next level (the regression of "Progressive Distillation for Fast Sampling of
Diffusion Models", arXiv 2202.00512, on guided trajectories as in "On Distillation of Guided Diffusion
Models", arXiv 2210.03142). In the second half every other batch starts from where the student's own last step
leads instead, with the teacher's next state still the goal: so it learns to correct its own errors, as in
dataset aggregation ("A Reduction of Imitation Learning", arXiv 1011.0686).

`dense` starts from the teacher and is the full-precision model that the others are compared with. `binary` and
`ternary` start from `dense` if it is there; their packed linears are rounded in every forward pass, as BitNet does
(arXiv 2402.17764). The text encoder is the teacher's and stays fixed. run/KIND.pt is the checkpoint,
run/KIND-final.pt the result, out/KIND-* the same in small pieces, out/KIND.png samples.
"""

import argparse
import random

import torch
import torch.nn.functional as F

from .buckets import NATIVE, batch_for
from .cache import load_vae
from .clock import Clock, Signals
from .common import finish_arguments, learning_rate, mixed_precision, set_rate, stage_parser, training_loop
from .flow import Velocity, pipeline_sigmas
from .model import build_text_encoder, build_transformer, encode_prompt
from .optimizers import adamw
from .quantize import final_transformer_state, pack_state, quantize_transformer
from .samples import prompt_sheet
from .storage import limit_folder, load_checkpoint, need, save_checkpoint, save_pieces
from .tokenizer import load_tokenizer

KINDS = ("dense", "binary", "ternary")
RATES = {"dense": 3e-4, "binary": 8e-4, "ternary": 8e-4}
STEP_SHARES = (0.16, 0.18, 0.24, 0.42)  # how often each of the four steps is trained
OWN_FROM = 0.5  # progress from which the student's own states are used
OTHERS_SHARE = 0.3


class Trajectories:
    """The teacher's states of one size on the device, with the prompts' features."""

    def __init__(self, part: dict[str, torch.Tensor], size: tuple[int, int], text_encoder, pad: int, device):
        self.states = part["states"].to(device)  # [R, 5, 64, h, w] float16
        self.sigmas = torch.tensor(pipeline_sigmas(size[0] * size[1] // 256), device=device)
        kept = torch.bfloat16 if self.states.is_cuda else torch.float32
        features = []
        with torch.no_grad(), mixed_precision(device):
            for ids in part["tokens"].split(1024):
                features.append(encode_prompt(text_encoder, ids.to(device).long(), pad).to(kept))
        self.text = torch.cat(features)  # [R, 48, 768]

    def batch_loss(self, velocity: Velocity, count: int, own: bool) -> torch.Tensor:
        """Mean squared error of the velocity to the next level; `own`: from the student's own states."""
        device = self.states.device
        rows = torch.randint(len(self.states), (count,), device=device)
        stage = torch.multinomial(torch.tensor(STEP_SHARES, device=device), count, replacement=True)
        text, now = self.text[rows], self.states[rows, stage].float()
        if own:
            before = (stage - 1).clamp(min=0)
            x, high = self.states[rows, before].float(), self.sigmas[before]
            # with gradients switched on but unused: the same compiled graph serves
            step = velocity(x, high, text).detach() * (self.sigmas[stage] - high)[:, None, None, None]
            now = torch.where((stage > 0)[:, None, None, None], x + step, now)
        high, low = self.sigmas[stage], self.sigmas[stage + 1]
        target = (self.states[rows, stage + 1].float() - now) / (low - high)[:, None, None, None]
        return F.mse_loss(velocity(now, high, text), target)


def start_state(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """The weights that a student starts from."""
    dense = args.run / "dense-final.pt"
    if args.kind != "dense" and dense.exists():
        return load_checkpoint(dense)["transformer"]
    return need(args.run / "teacher-final.pt", "teacher")["transformer"]


def train(args: argparse.Namespace) -> bool:
    """Train on; returns whether run/KIND-final.pt is there."""
    kind, device = args.kind, args.device
    final_path, checkpoint = args.run / f"{kind}-final.pt", args.run / f"{kind}.pt"
    if final_path.exists():
        return True
    state = load_checkpoint(checkpoint, device)
    clock = Clock(args.minutes, args.steps, state["seconds"] if state else 0.0, args.until)
    tokenizer = load_tokenizer(args.data)
    pad = tokenizer.pad_token_id
    text_encoder = build_text_encoder(pad, tokenizer.eos_token_id, args.tiny).to(device).eval()
    text_encoder.load_state_dict(need(args.run / "teacher-final.pt", "teacher")["text"])
    transformer = build_transformer(args.tiny).to(device)
    transformer.load_state_dict(state["transformer"] if state else start_state(args))
    if kind != "dense":
        quantize_transformer(transformer, kind)
    optimizer = adamw(transformer.parameters(), device)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    buckets = need(args.run / "rollouts.pt", "rollouts")["buckets"]
    paths = {size: Trajectories(part, size, text_encoder, pad, device) for size, part in buckets.items()}
    others = [size for size in sorted(paths) if size != NATIVE]
    velocity = Velocity(transformer, args.compile)

    def advance(step: int, progress: float) -> torch.Tensor:
        chooser = random.Random(args.seed * 7919 + step)
        size = chooser.choice(others) if step and others and chooser.random() < OTHERS_SHARE else NATIVE
        set_rate(optimizer, learning_rate(args.rate, step, progress, warmup=100))
        with torch.compiler.set_stance("default" if size == NATIVE else "force_eager"):
            own = progress > OWN_FROM and step % 2 == 1
            loss = paths[size].batch_loss(velocity, batch_for(size, args.batch), own)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        return loss

    def save(step: int, complete: bool) -> None:
        facts = dict(step=step, seconds=clock.seconds, complete=complete)
        if args.out:
            packed = transformer.state_dict() if kind == "dense" else pack_state(transformer, kind)
            save_pieces(packed, args.out, kind, small=kind == "dense", notes=facts)
            limit_folder(args.out, args.out_megabytes)
        weights = dict(transformer=transformer.state_dict(), optimizer=optimizer.state_dict())
        save_checkpoint(weights | facts, checkpoint)
        if complete:
            exact = final_transformer_state(transformer, None if kind == "dense" else kind)
            save_checkpoint(dict(transformer=exact, step=step), final_path)

    complete = training_loop(args, kind, clock, step=state["step"] if state else 0, advance=advance, save=save)
    if args.out and not args.tiny:
        sheet = args.out / f"{kind}.png"
        prompt_sheet(velocity, text_encoder, tokenizer, load_vae(args.run, device), sheet, pipeline_sigmas())
    if args.out:
        limit_folder(args.out, args.out_megabytes)
    return complete


def run(arguments: list[str] | None = None) -> bool:
    """The stage with command line `arguments`."""
    parser = stage_parser(__doc__, minutes=3.4, seed=3)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--batch", type=int, default=0, help="pictures of 256x256 a step")
    parser.add_argument("--rate", type=float, default=0.0, help="peak learning rate; 0: the kind's own")
    args = finish_arguments(parser.parse_args(arguments))
    args.batch, args.rate = args.batch or (4 if args.tiny else 256), args.rate or RATES[args.kind]
    return train(args)


if __name__ == "__main__":
    Signals.watch()
    run()
