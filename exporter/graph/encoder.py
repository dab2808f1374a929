"""Qwen3Model on the meta device, cut after the last used layer, as the `encoder` graph.

Hidden state 0 is the embedding, hidden state n the residual stream after n layers; only the state
after the model's very last layer has passed the final norm (transformers' convention, which
`Flux2KleinPipeline` stacks). Layers above the last used one are never built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.onnx import ops

from exporter.errors import BadCheckpoint

_ATTENTION = "bitbrush"


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Registered with transformers: causal grouped attention as one ONNX operator.

    query: f32[1, heads, tokens, head_size]; key, value likewise with kv heads; attention_mask:
    bool[1, tokens], true where a key may be attended to.
    """
    q, k, v = (x.transpose(1, 2).flatten(2) for x in (query, key, value))
    mask = attention_mask[:, None, None, :].expand(1, 1, query.shape[2], -1)  # onnxruntime does not broadcast it
    out = ops.attention(
        q, k, v, attn_mask=mask, is_causal=True, scale=scaling, q_num_heads=query.shape[1], kv_num_heads=key.shape[1]
    )[0]
    return out.unflatten(-1, (-1, module.head_dim)), None


def _rotary(q, k, cos, sin, unsqueeze_dim=1):
    """transformers' half-split rotation as one ONNX operator; cos, sin: f32[1, tokens, head_size / 2]."""
    return ops.rotary_embedding(q, cos, sin), ops.rotary_embedding(k, cos, sin)


class _RotaryTables(torch.nn.Module):
    tables: tuple[torch.Tensor, torch.Tensor]

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor):
        return self.tables


def _replace_norms(module: torch.nn.Module, norm_class: type) -> None:
    for name, child in module.named_children():
        if isinstance(child, norm_class):
            setattr(module, name, torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon))
        else:
            _replace_norms(child, norm_class)


def encoder_config(config: dict[str, Any], layers: tuple[int, ...]):
    """The Qwen3 configuration cut to the layers in use.

    Raises:
        BadCheckpoint: a layer that the model has not, or a rotary kind or attention kind that the
            graph does not express.
    """
    from transformers import Qwen3Config

    total = config["num_hidden_layers"]
    if max(layers) > total or min(layers) < 0:
        raise BadCheckpoint(
            f"text_encoder/config.json: hidden states {list(layers)} were asked for, but the model has "
            f"{total} layers; choose others with --encoder-layers"
        )
    full = Qwen3Config(**config)
    kind = full.rope_parameters.get("rope_type", "default")
    if kind != "default":
        raise BadCheckpoint(f"text_encoder/config.json: rotary kind 'default' expected, {kind!r} found")
    if any(layer_type != "full_attention" for layer_type in full.layer_types[: max(layers)]):
        raise BadCheckpoint("text_encoder/config.json: full attention expected in every used layer, sliding found")
    full.num_hidden_layers = max(max(layers), 1)
    full.layer_types = full.layer_types[: full.num_hidden_layers]
    full._attn_implementation = _ATTENTION
    return full


class Encoder(torch.nn.Module):
    """(token_ids, key_mask, rotary tables) -> features; shapes in DESIGN.md §3."""

    def __init__(self, config: dict[str, Any], layers: tuple[int, ...]) -> None:
        from transformers import AttentionInterface
        from transformers.models.qwen3 import modeling_qwen3

        super().__init__()
        AttentionInterface.register(_ATTENTION, _attention)
        self.layers = layers
        cut = encoder_config(config, layers)
        self.model = modeling_qwen3.Qwen3Model(cut)
        self.model.rotary_emb = _RotaryTables()
        if max(layers) < config["num_hidden_layers"]:
            self.model.norm = torch.nn.Identity()
        _replace_norms(self.model, modeling_qwen3.Qwen3RMSNorm)

    def forward(self, token_ids, key_mask, rotary_cos, rotary_sin):
        from transformers.models.qwen3 import modeling_qwen3

        self.model.rotary_emb.tables = (rotary_cos, rotary_sin)
        original = modeling_qwen3.apply_rotary_pos_emb
        modeling_qwen3.apply_rotary_pos_emb = _rotary
        try:
            states = self.model(
                inputs_embeds=self.model.embed_tokens(token_ids),
                attention_mask={"full_attention": key_mask},
                position_ids=torch.zeros(1, 1, dtype=torch.int64),
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states
        finally:
            modeling_qwen3.apply_rotary_pos_emb = original
        return torch.cat([states[layer] for layer in self.layers], dim=-1)

    def example(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, Any]], str]:
        """Example inputs (the token count is a symbol), their dynamic axes, and the output's name."""
        tokens = torch.export.Dim("text_tokens", min=1)
        half = self.model.config.head_dim // 2
        inputs = {
            "token_ids": torch.zeros(1, 9, dtype=torch.int64),
            "key_mask": torch.ones(1, 9, dtype=torch.bool),
            "rotary_cos": torch.zeros(1, 9, half),
            "rotary_sin": torch.zeros(1, 9, half),
        }
        return inputs, {name: {1: tokens} for name in inputs}, "features"
