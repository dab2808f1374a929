"""Small helpers that all training stages share."""

import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class Budget:
    """Training time in minutes, over one or several runs; learning rates follow `progress` (0..1)."""

    def __init__(self, minutes: float, done: float = 0.0):
        self.total, self.done, self.start = minutes * 60, done, None

    def begin(self) -> None:
        """Start the clock; called after the first step so that compilation is not counted."""
        if self.start is None:
            self.start = time.time()

    @property
    def seconds(self) -> float:
        return self.done + (time.time() - self.start if self.start else 0.0)

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / self.total)


def learning_rate(peak: float, step: int, progress: float, warmup: int, flat: float = 0.3) -> float:
    """Linear warm-up, constant until progress `flat`, then linear decay to zero."""
    decay = 1.0 if progress < flat else (1.0 - progress) / (1.0 - flat)
    return peak * min(1.0, (step + 1) / warmup) * decay


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


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
        for parameter, average in zip(self.source, self.average, strict=False):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


def save_pieces(tensors: dict[str, torch.Tensor], folder: Path, stem: str, limit: int = 15_000_000) -> None:
    """Save tensors as `stem-0.safetensors`, `stem-1...`, each at most `limit` bytes (floats as float16)."""
    folder.mkdir(parents=True, exist_ok=True)
    piece, size, number = {}, 0, 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        tensor = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        if piece and size + tensor.nbytes > limit:
            save_file(piece, folder / f"{stem}-{number}.safetensors")
            piece, size, number = {}, 0, number + 1
        piece[name], size = tensor, size + tensor.nbytes
    save_file(piece, folder / f"{stem}-{number}.safetensors")


def load_pieces(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """The tensors of all pieces of `stem`, floats as float32."""
    tensors = {}
    for path in sorted(folder.glob(f"{stem}-*.safetensors")):
        tensors.update(load_file(path))
    if not tensors:
        raise FileNotFoundError(f"no {stem}-*.safetensors in {folder}")
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def mixed_precision(device):
    """bfloat16 autocast on a GPU; nothing on a CPU, where bfloat16 may be emulated."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu")
