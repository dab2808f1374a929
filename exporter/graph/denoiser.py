"""Flux2Transformer2DModel on the meta device, ready for export as the `denoiser` graph.

The attention processors below are the model's own extension point: they compute what diffusers'
processors compute, with each attention and each rotation as a single ONNX operator. Text tokens come
before image tokens in every joint sequence.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.onnx import ops

Tables = tuple[torch.Tensor, torch.Tensor]  # cos, sin: f32[1, tokens, head_size / 2]


def _heads(x: torch.Tensor, head_size: int) -> torch.Tensor:
    return x.unflatten(-1, (-1, head_size))


def _rotate(x: torch.Tensor, tables: Tables) -> torch.Tensor:
    """x: f32[1, tokens, heads, head_size] -> rotated f32[1, tokens, heads · head_size]."""
    return ops.rotary_embedding(x.flatten(2), *tables, interleaved=True, num_heads=x.shape[2])


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    return ops.attention(q, k, v, q_num_heads=heads, kv_num_heads=heads)[0]


class DoubleProcessor:
    """Joint attention of a double block; returns (image, text) like diffusers' processor."""

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        image_rotary_emb=None,
        tables: tuple[Tables, Tables] | None = None,
    ):
        text, image = tables
        size = attn.head_dim
        q = torch.cat(
            [
                _rotate(attn.norm_added_q(_heads(attn.add_q_proj(encoder_hidden_states), size)), text),
                _rotate(attn.norm_q(_heads(attn.to_q(hidden_states), size)), image),
            ],
            dim=1,
        )
        k = torch.cat(
            [
                _rotate(attn.norm_added_k(_heads(attn.add_k_proj(encoder_hidden_states), size)), text),
                _rotate(attn.norm_k(_heads(attn.to_k(hidden_states), size)), image),
            ],
            dim=1,
        )
        v = torch.cat([attn.add_v_proj(encoder_hidden_states), attn.to_v(hidden_states)], dim=1)
        out = _attend(q, k, v, attn.heads)
        text_tokens = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, text_tokens:]), attn.to_add_out(out[:, :text_tokens])


class SingleProcessor:
    """Parallel attention and MLP of a single block on the joint sequence."""

    def __call__(
        self,
        attn,
        hidden_states,
        attention_mask=None,
        image_rotary_emb=None,
        tables: tuple[Tables, Tables] | None = None,
    ):
        text, image = tables
        joint = (torch.cat([text[0], image[0]], dim=1), torch.cat([text[1], image[1]], dim=1))
        fused = attn.to_qkv_mlp_proj(hidden_states)
        qkv, mlp = torch.split(fused, [3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor], dim=-1)
        q, k, v = qkv.chunk(3, dim=-1)
        q = _rotate(attn.norm_q(_heads(q, attn.head_dim)), joint)
        k = _rotate(attn.norm_k(_heads(k, attn.head_dim)), joint)
        out = _attend(q, k, v, attn.heads)
        return attn.to_out(torch.cat([out, attn.mlp_act_fn(mlp)], dim=-1))


class _TimestepFeatures(torch.nn.Module):
    """Stands where the sinusoid is computed: the runtime hands it in (float64 there)."""

    features: torch.Tensor

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        return self.features


class _NoPositions(torch.nn.Module):
    """Stands where position ids become rotary tables: the processors get tables directly."""

    def forward(self, ids: torch.Tensor) -> Tables:
        return ids, ids


class Denoiser(torch.nn.Module):
    """(latents, features, timestep_features, rotary tables) -> velocity; shapes in DESIGN.md §3."""

    def __init__(self, config: dict[str, Any]) -> None:
        from diffusers import Flux2Transformer2DModel

        super().__init__()
        known = inspect.signature(Flux2Transformer2DModel.__init__).parameters
        self.model = Flux2Transformer2DModel(**{k: v for k, v in config.items() if k in known})
        self.model.time_guidance_embed.time_proj = _TimestepFeatures()
        self.model.pos_embed = _NoPositions()
        for block in self.model.transformer_blocks:
            block.attn.set_processor(DoubleProcessor())
        for block in self.model.single_transformer_blocks:
            block.attn.set_processor(SingleProcessor())

    def forward(
        self, latents, features, timestep_features, text_rotary_cos, text_rotary_sin, image_rotary_cos, image_rotary_sin
    ):
        self.model.time_guidance_embed.time_proj.features = timestep_features
        tables = ((text_rotary_cos, text_rotary_sin), (image_rotary_cos, image_rotary_sin))
        no_ids = torch.zeros(1, 4)
        return self.model(
            latents,
            features,
            torch.zeros(1),
            no_ids,
            no_ids,
            joint_attention_kwargs={"tables": tables},
            return_dict=False,
        )[0]

    def example(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, Any]], str]:
        """Example inputs (token counts are symbols), their dynamic axes, and the output's name."""
        config = self.model.config
        text, image = torch.export.Dim("text_tokens", min=1), torch.export.Dim("image_tokens", min=1)
        half = config.attention_head_dim // 2
        inputs = {
            "latents": torch.zeros(1, 24, config.in_channels),
            "features": torch.zeros(1, 9, config.joint_attention_dim),
            "timestep_features": torch.zeros(1, config.timestep_guidance_channels),
            "text_rotary_cos": torch.zeros(1, 9, half),
            "text_rotary_sin": torch.zeros(1, 9, half),
            "image_rotary_cos": torch.zeros(1, 24, half),
            "image_rotary_sin": torch.zeros(1, 24, half),
        }
        axes = {
            "latents": {1: image},
            "features": {1: text},
            "timestep_features": {},
            "text_rotary_cos": {1: text},
            "text_rotary_sin": {1: text},
            "image_rotary_cos": {1: image},
            "image_rotary_sin": {1: image},
        }
        return inputs, axes, "velocity"
