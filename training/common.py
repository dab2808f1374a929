"""Small helpers that all training stages share: arguments, seeds, rates, logs, averages."""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch


def stage_parser(doc: str, minutes: float, seed: int, out: bool = True) -> argparse.ArgumentParser:
    """The options that every stage on the GPU has; `doc` is the module's docstring."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="what training.prepare wrote")
    parser.add_argument("--run", type=Path, required=True, help="checkpoints, caches and log.jsonl")
    parser.add_argument("--minutes", type=float, default=minutes, help="over all calls; compiling and saving count")
    parser.add_argument("--until", type=float, default=math.inf, help="stop this call by that Unix time")
    parser.add_argument("--steps", type=int, default=0, help="train so many steps instead of `minutes`")
    parser.add_argument("--stop-after", type=int, default=0, help="stop this call after so many steps")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="a dry run: tiny networks and batches on the CPU")
    parser.add_argument("--log-every", type=int, default=200)
    parser.add_argument("--save-every", type=float, default=90.0, help="seconds between checkpoints")
    if out:
        parser.add_argument("--out", type=Path, help="also save small pieces and pictures here")
        parser.add_argument("--out-megabytes", type=float, default=64.0, help="most that `out` may hold")
    return parser


def finish_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """Apply --tiny and check that the data and the device exist."""
    if args.tiny:
        args.device, args.compile = "cpu", False
        torch.set_num_threads(1)
    if not (args.data / "objects.json").exists():
        raise SystemExit(
            f"{args.data}: expected objects.json, found none; make it with "
            f"`python -m training.prepare --emoji DIR --labels DIR --data {args.data}`"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: expected a CUDA GPU, found none; try --tiny for a dry run on the CPU")
    torch.set_float32_matmul_precision("high")
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # one graph a block kind and bucket, in one process
    return args


def seed_step(seed: int, step: int) -> None:
    """Make a step's random numbers depend on nothing but `seed` and `step`, so that runs can be resumed."""
    torch.manual_seed(seed * 1_000_003 + step)


def learning_rate(peak: float, step: int, progress: float, warmup: int, flat: float = 0.3) -> float:
    """Linear warm-up, constant until progress `flat`, then linear decay to zero.

    Decay all the way to zero beat a cosine that ends above it in "Straight to Zero" (arXiv 2502.15938).
    """
    decay = 1.0 if progress < flat else (1.0 - progress) / (1.0 - flat)
    return peak * min(1.0, (step + 1) / warmup) * decay


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, times the group's own `factor` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


class Log:
    """Appends JSON lines to a file and prints them."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def __call__(self, **fields) -> None:
        line = json.dumps(
            {key: round(value, 5) if isinstance(value, float) else value for key, value in fields.items()}
        )
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


class Ema:
    """Exponential moving average of parameters, with a short start-up."""

    def __init__(self, modules: list[torch.nn.Module], decay: float):
        self.source = [p for module in modules for p in module.parameters()]
        self.average = [p.detach().clone() for p in self.source]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.source], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages (call again to undo)."""
        for parameter, average in zip(self.source, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict:
        return dict(average=self.average, steps=self.steps)

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        torch._foreach_copy_(self.average, state["average"])
        self.steps = state["steps"]


def training_loop(
    args,
    name: str,
    clock,
    step: int,
    advance: Callable[[int, float], torch.Tensor],
    save: Callable[[int, bool], None],
) -> bool:
    """Call `advance(step, progress) -> loss` until the clock or a signal says stop; returns whether that was the end.

    `save(steps, complete)` is called at intervals and at the end. A loss that is not finite stops the run before
    it can overwrite a checkpoint.
    """
    log, first, saved, loss = Log(args.run / "log.jsonl"), step, time.time(), None
    while not clock.stop(step) and not (args.stop_after and step - first >= args.stop_after):
        seed_step(args.seed, step)
        loss = advance(step, clock.progress(step))
        if step % args.log_every == 0:
            record(log, name, step, loss, clock)
        step += 1
        if time.time() - saved > args.save_every:
            record(log, name, step, loss, clock)
            save(step, False)
            saved = time.time()
    if loss is not None:
        record(log, name, step, loss, clock)
    complete = clock.progress(step) >= 1
    save(step, complete)
    return complete


def record(log: Log, name: str, step: int, loss: torch.Tensor, clock) -> None:
    """Log one line; stops with a message if the loss is not a number."""
    value = loss.item()
    if not math.isfinite(value):
        raise SystemExit(f"{name}: expected a finite loss at step {step}, found {value}; the last checkpoint is kept")
    log(stage=name, step=step, loss=value, seconds=clock.seconds)


def mixed_precision(device):
    """bfloat16 autocast on a GPU; nothing on a CPU, where bfloat16 may be emulated."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu")


def free_gpu() -> None:
    """Give cached GPU memory back between stages of one process."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
