"""Stage 5: train the dense teacher and the text encoder together.

    python -m training.teacher --data DIR --run DIR [--out DIR]

Flow matching on the cached latents with 10 % empty captions, sizes and kinds of scene as buckets.py says and
noise levels as flow.py says. The encoder's matrices are rounded to 4 bits in the forward pass in the last third
only: rounding from the first step hides small changes of the embeddings while names are being learned.

run/teacher.pt is the checkpoint, run/teacher-final.pt the result (moving averages, encoder rounded exactly as
exported), out/text-0 and out/teacher-* the same in small pieces, out/teacher.png samples.
"""

import argparse
import random
from pathlib import Path

import torch

from .buckets import NATIVE, SMALL, batch_for, load_buckets, pick_size
from .cache import load_vae
from .clock import Clock, Signals
from .common import Ema, finish_arguments, learning_rate, mixed_precision, set_rate, stage_parser, training_loop
from .flow import Velocity, flow_loss, pipeline_sigmas
from .model import TEXT_LENGTH, build_text_encoder, build_transformer, encode_prompt
from .optimizers import make_optimizer
from .quantize import final_text_state, final_transformer_state, pack_text, quantize_text_encoder, unpack_text
from .samples import prompt_sheet
from .storage import limit_folder, load_checkpoint, load_pieces, piece_notes, save_checkpoint, save_pieces
from .tokenizer import encode_batch, load_tokenizer

ROUND_FROM = 0.67  # progress from which the encoder is rounded
EMPTY_SHARE = 0.1


def empty_prompt(tokenizer, device) -> torch.Tensor:
    """Token ids [48] of the empty prompt."""
    return torch.tensor(encode_batch(tokenizer, [""], TEXT_LENGTH)[0], device=device)


def text_pieces(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The text encoder's tensors that are used, without the tied head."""
    return {name: t for name, t in state.items() if "layers.5." not in name and name != "lm_head.weight"}


class Teacher:
    """Transformer and text encoder with their optimizer and averages."""

    def __init__(self, args: argparse.Namespace):
        self.args, device = args, args.device
        torch.manual_seed(args.seed)
        self.tokenizer = load_tokenizer(args.data)
        self.pad = self.tokenizer.pad_token_id
        self.transformer = build_transformer(args.tiny).to(device)
        self.text_encoder = build_text_encoder(self.pad, self.tokenizer.eos_token_id, args.tiny).to(device)
        modules = [self.transformer, self.text_encoder.model]
        self.parameters = [p for module in modules for p in module.parameters()]
        self.optimizer = make_optimizer(args.optimizer, modules, device)
        self.ema = Ema(modules, args.average)
        self.rounded, self.step, self.fresh, self.seconds = False, 0, 0, 0.0

    def restore(self) -> None:
        """Go on from run/teacher.pt, or else from saved pieces if there are some."""
        state = load_checkpoint(self.args.run / "teacher.pt", self.args.device)
        pieces = self.args.pieces
        if state:
            self.transformer.load_state_dict(state["transformer"])
            self.text_encoder.load_state_dict(state["text"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema.load_state_dict(state["ema"])
        elif pieces and (state := piece_notes(pieces, "teacher")) is not None:
            self.transformer.load_state_dict(load_pieces(pieces, "teacher"))
            self.text_encoder.load_state_dict(unpack_text(load_pieces(pieces, "text")), strict=False)
            torch._foreach_copy_(self.ema.average, self.ema.source)
            state["fresh"] = state["step"]  # its optimizer starts anew
        if state:
            self.step, self.fresh, self.seconds = state["step"], state["fresh"], state["seconds"]

    def round(self) -> None:
        """From now on compute with the encoder's 4-bit weights."""
        quantize_text_encoder(self.text_encoder)
        self.rounded = True

    def save(self, step: int, complete: bool, seconds: float) -> None:
        """Checkpoint, and what the averages are worth so far as pieces."""
        args, facts = self.args, dict(step=step, seconds=seconds, complete=complete)
        self.ema.swap()
        transformer = final_transformer_state(self.transformer, None)
        text = self.text_encoder.state_dict()
        text = final_text_state(text) if complete else {name: tensor.clone() for name, tensor in text.items()}
        self.ema.swap()
        if complete:
            save_checkpoint(dict(transformer=transformer, text=text, step=step), args.run / "teacher-final.pt")
        if args.out:
            text = text_pieces(text)
            save_pieces(pack_text(text) if complete else text, args.out, "text", small=not complete, notes=facts)
            save_pieces(transformer, args.out, "teacher", small=True, notes=facts)
            limit_folder(args.out, args.out_megabytes)
        state = dict(
            transformer=self.transformer.state_dict(),
            text=self.text_encoder.state_dict(),
            optimizer=self.optimizer.state_dict(),
            ema=self.ema.state_dict(),
            fresh=self.fresh,
            **facts,
        )
        save_checkpoint(state, args.run / "teacher.pt")

    def loss(self, latents: torch.Tensor, ids: torch.Tensor, velocity: Velocity, compiled: bool) -> torch.Tensor:
        """Flow-matching loss of one batch; sizes that are rare run uncompiled."""
        with torch.compiler.set_stance("default" if compiled else "force_eager"):
            with mixed_precision(latents.device):
                text = encode_prompt(self.text_encoder, ids, self.pad)
            return flow_loss(velocity, latents, text)


def train(args: argparse.Namespace) -> bool:
    """Train on; returns whether run/teacher-final.pt is there."""
    if (args.run / "teacher-final.pt").exists():
        return True
    device, teacher = args.device, Teacher(args)
    teacher.restore()
    clock = Clock(args.minutes, args.steps, teacher.seconds, args.until, reserve=12)
    buckets = load_buckets(args.run, device)
    velocity = Velocity(teacher.transformer, args.compile)
    if args.compile:
        for layer in teacher.text_encoder.model.layers:
            layer.compile(dynamic=False)
    empty = empty_prompt(teacher.tokenizer, device)

    def advance(step: int, progress: float) -> torch.Tensor:
        size = pick_size(progress, random.Random(args.seed * 7919 + step), sorted(buckets))
        if progress > ROUND_FROM and not teacher.rounded:
            teacher.round()
        latents, ids = buckets[size].draw(batch_for(size, args.batch), progress)
        ids = torch.where(torch.rand(len(ids), 1, device=device) < EMPTY_SHARE, empty[None], ids)
        set_rate(teacher.optimizer, learning_rate(args.rate, step - teacher.fresh, progress, warmup=args.warmup))
        loss = teacher.loss(latents, ids, velocity, size in (SMALL, NATIVE))
        teacher.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters, 1.0)
        teacher.optimizer.step()
        teacher.ema.update()
        return loss

    complete = training_loop(
        args, "teacher", clock, teacher.step, advance, lambda step, done: teacher.save(step, done, clock.seconds)
    )
    if args.out and not args.tiny:
        teacher.ema.swap()
        vae = load_vae(args.run, device)
        prompt_sheet(
            velocity, teacher.text_encoder, teacher.tokenizer, vae, args.out / "teacher.png", pipeline_sigmas()
        )
    return complete


def run(arguments: list[str] | None = None) -> bool:
    """The stage with command line `arguments`."""
    parser = stage_parser(__doc__, minutes=11.0, seed=2)
    parser.add_argument("--pieces", type=Path, help="go on from saved pieces if there is no checkpoint")
    parser.add_argument("--batch", type=int, default=0, help="pictures of 256x256 a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="AdamW's peak rate; Muon's is three times that")
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--average", type=float, default=0.9992, help="decay of the moving averages")
    args = finish_arguments(parser.parse_args(arguments))
    args.batch = args.batch or (4 if args.tiny else 256)
    return train(args)


if __name__ == "__main__":
    Signals.watch()
    run()
