"""Muon for the matrices of the blocks, AdamW for everything else.

Muon ("Muon is Scalable for LLM Training", arXiv 2502.16982) replaces a matrix's momentum by the nearest
matrix with equal singular values, found with five Newton-Schulz steps, and scales it so that its typical
entry is as large as AdamW's. It reaches a given loss in markedly fewer steps where steps are what is short.
Matrices of one shape are orthogonalised as one batch: a few dozen kernels a step instead of thousands.
"""

import re
from collections import defaultdict

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
BLOCK_MATRIX = re.compile(r"(.*\.)?(transformer_blocks|single_transformer_blocks|layers)\.\d+\..*weight")
MUON_FACTOR = 3.0  # Muon's rate over AdamW's


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """[B, N, K] -> about the nearest matrices whose singular values are 1, same dtype."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; every parameter is a matrix."""

    def __init__(self, parameters, lr: float = 0.0, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._update(shape, parameters, group)

    def _update(self, shape: torch.Size, parameters: list[torch.Tensor], group: dict) -> None:
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        update = orthogonal(torch.stack(ahead)) * (0.2 * max(shape) ** 0.5)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(update.unbind()), alpha=-group["lr"])


class Pair:
    """Several optimizers used as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def adamw(parameters, device: str, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW as all stages use it; its rate is set at every step."""
    return torch.optim.AdamW(
        parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=weight_decay, fused=torch.device(device).type == "cuda"
    )


def make_optimizer(kind: str, modules: list[torch.nn.Module], device: str, weight_decay: float = 0.01) -> Pair:
    """`kind` muon: Muon for the blocks' matrices and AdamW for the rest; adamw: AdamW alone."""
    named = [item for module in modules for item in module.named_parameters()]
    matrices = [p for name, p in named if kind == "muon" and p.ndim == 2 and BLOCK_MATRIX.fullmatch(name)]
    taken = {id(p) for p in matrices}
    rest = adamw([p for _, p in named if id(p) not in taken], device, weight_decay)
    if not matrices:
        return Pair(rest)
    muon = Muon([dict(params=matrices, factor=MUON_FACTOR)], weight_decay=weight_decay)
    return Pair(muon, rest)
