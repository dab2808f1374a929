"""Exact binary, ternary and 4-bit weights, and layers that train through them.

Transformer linears: groups of 128 consecutive elements along K of one output row share one float16
scale s. Binary codes are -1/+1 with s = mean|w|; ternary codes are -1/0/+1 by the threshold
0.7 mean|w| with s = the mean of the kept magnitudes ("Ternary Weight Networks", arXiv 1605.04711).
Text encoder: groups of 64, 4-bit affine, w = code * scale + offset.
Gradients pass straight through the rounding ("Estimating or Propagating Gradients ...", arXiv 1308.3432).
"""

import re

import torch
from torch import nn

GROUP = 128
AFFINE_GROUP = 64
PACKED = re.compile(
    r"transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|to_out\.0|to_add_out)"
    r"|ff(_context)?\.linear_(in|out))"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)


def binary(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] float32 -> codes [N, K/128, 128] in -1/+1 and scales [N, K/128, 1], float16 values as float32."""
    groups = weight.unflatten(-1, (-1, GROUP))
    scale = groups.abs().mean(-1, keepdim=True).half().float()
    return torch.where(groups < 0, -1.0, 1.0), scale


def ternary(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] float32 -> codes [N, K/128, 128] in -1/0/+1 and scales [N, K/128, 1] as in `binary`."""
    groups = weight.unflatten(-1, (-1, GROUP))
    size = groups.abs()
    kept = (size > 0.7 * size.mean(-1, keepdim=True)).float()
    scale = ((size * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)).half().float()
    return torch.sign(groups) * kept, scale


def affine4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[N, K] float32 -> codes 0..15 [N, K/64, 64], scales and offsets [N, K/64, 1] (float16 values)."""
    groups = weight.unflatten(-1, (-1, AFFINE_GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale, offset = ((high - low) / 15).half().float(), low.half().float()
    codes = ((groups - offset) / torch.where(scale > 0, scale, 1.0)).round().clamp(0, 15)
    return codes, scale, offset


def dequantize(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """The exact float32 values of the quantised weight, [N, K]."""
    if kind == "affine4":
        codes, scale, offset = affine4(weight)
        return (codes * scale + offset).flatten(-2)
    codes, scale = {"binary": binary, "ternary": ternary}[kind](weight)
    return (codes * scale).flatten(-2)


def straight_through(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """Quantised values forward, identity gradient backward."""
    with torch.no_grad():
        change = dequantize(weight, kind) - weight
    return weight + change


class QuantLinear(nn.Linear):
    """A linear that computes with quantised weights; `kind` is binary, ternary or affine4."""

    kind: str

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, straight_through(self.weight, self.kind), self.bias)


class QuantEmbedding(nn.Embedding):
    """An embedding with 4-bit affine rows."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(ids, straight_through(self.weight, "affine4"))


def packed_linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The linears that the page stores packed, by name."""
    return {name: module for name, module in transformer.named_modules() if PACKED.fullmatch(name)}


def quantize_transformer(transformer: nn.Module, kind: str) -> None:
    """Make the packed linears train through `kind`; names and parameters stay as they are."""
    for module in packed_linears(transformer).values():
        module.__class__ = QuantLinear
        module.kind = kind


def quantize_text_encoder(text_encoder: nn.Module) -> None:
    """Make the encoder's linears and embedding train through 4-bit affine rounding."""
    for module in text_encoder.model.modules():
        if type(module) is nn.Linear:
            module.__class__ = QuantLinear
            module.kind = "affine4"
        elif type(module) is nn.Embedding:
            module.__class__ = QuantEmbedding


@torch.no_grad()
def final_transformer_state(transformer: nn.Module, kind: str | None) -> dict[str, torch.Tensor]:
    """State dict with exact quantised values in the packed linears and float16 values elsewhere (as float32)."""
    packed = {name + ".weight" for name in packed_linears(transformer)} if kind else set()
    return {
        name: dequantize(tensor.float(), kind) if name in packed else tensor.half().float()
        for name, tensor in transformer.state_dict().items()
    }


@torch.no_grad()
def final_text_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Encoder state with exact 4-bit values in every matrix and float16 values elsewhere (as float32)."""
    return {
        name: dequantize(tensor.float(), "affine4") if tensor.ndim == 2 else tensor.half().float()
        for name, tensor in state.items()
    }


@torch.no_grad()
def pack_state(transformer: nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """Compact form of a student: `.codes` uint8 [N, K/4] (2 bits, code + 1), `.scale` [N, K/128], rest dense."""
    packed, state = packed_linears(transformer), {}
    for name, tensor in transformer.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem not in packed:
            state[name] = tensor
            continue
        codes, scale = {"binary": binary, "ternary": ternary}[kind](tensor.float())
        fields = (codes.flatten(-2) + 1).to(torch.uint8).unflatten(-1, (-1, 4))
        shifts = torch.tensor([0, 2, 4, 6], device=fields.device, dtype=torch.uint8)
        state[stem + ".codes"] = (fields << shifts).sum(-1, dtype=torch.uint8)
        state[stem + ".scale"] = scale.squeeze(-1)
    return state


def unpack_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `pack_state`: float32 weights with the exact quantised values."""
    result = {}
    for name, tensor in state.items():
        if name.endswith(".codes"):
            shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
            codes = ((tensor[..., None] >> shifts) & 3).flatten(-2).float() - 1
            scale = state[name.removesuffix("codes") + "scale"].float()
            result[name.removesuffix("codes") + "weight"] = codes * scale.repeat_interleave(GROUP, dim=-1)
        elif not name.endswith(".scale"):
            result[name] = tensor.half().float()
    return result


@torch.no_grad()
def pack_text(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Compact form of the encoder: matrices as `.codes4` uint8 [N, K/2] (low nibble first), `.scale4` and
    `.offset4` [N, K/64]; the rest as it is."""
    result = {}
    for name, tensor in state.items():
        if tensor.ndim != 2:
            result[name] = tensor
            continue
        codes, scale, offset = affine4(tensor.float())
        codes = codes.flatten(-2).to(torch.uint8)
        result[name + ".codes4"] = codes[:, 0::2] | codes[:, 1::2] << 4
        result[name + ".scale4"], result[name + ".offset4"] = scale.squeeze(-1), offset.squeeze(-1)
    return result


def unpack_text(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `pack_text`, with the exact 4-bit values; other tensors are left as they are."""
    result = {}
    for name, tensor in state.items():
        stem = name.rsplit(".", 1)[0]
        if name.endswith(".codes4"):
            codes = torch.stack([tensor & 15, tensor >> 4], dim=-1).flatten(-2).float()
            scale, offset = (state[f"{stem}.{part}"].float() for part in ("scale4", "offset4"))
            groups = codes.unflatten(-1, (-1, AFFINE_GROUP))
            result[stem] = (groups * scale[..., None] + offset[..., None]).flatten(-2)
        elif not name.endswith((".scale4", ".offset4")):
            result[name] = tensor
    return result
