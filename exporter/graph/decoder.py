"""The decoder half of AutoencoderKLFlux2 on the meta device, as the `decoder` graph.

Latents come in as the transformer leaves them: normalised, patchified, token-major. The graph undoes
both and decodes. `bn.std` is sqrt(running_var + eps), computed once at export (formats: latent
statistics are the VAE's batch norm, not a scaling factor).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.onnx import ops

from exporter.errors import BadCheckpoint


class MidAttention:
    """Processor for the mid-block's self-attention: f32[1, C, height, width] -> the same."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        tokens = attn.group_norm(hidden_states).flatten(2).transpose(1, 2)
        q, k, v = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        out = ops.attention(q, k, v, q_num_heads=attn.heads, kv_num_heads=attn.heads, scale=attn.scale)[0]
        out = attn.to_out[0](out).transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            out = out + hidden_states
        return out if attn.rescale_output_factor == 1 else out / attn.rescale_output_factor


class Decoder(torch.nn.Module):
    """latents f32[1, rows, columns, channels] -> image f32[1, 3, height, width], about -1..1."""

    def __init__(self, config: dict[str, Any]) -> None:
        from diffusers import AutoencoderKLFlux2

        super().__init__()
        known = inspect.signature(AutoencoderKLFlux2.__init__).parameters
        vae = AutoencoderKLFlux2(**{k: v for k, v in config.items() if k in known})
        if tuple(vae.config.patch_size) != (2, 2):
            raise BadCheckpoint(f"vae/config.json: patch_size [2, 2] expected, {list(vae.config.patch_size)} found")
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        for attention in self.decoder.mid_block.attentions:
            if attention is not None:
                attention.set_processor(MidAttention())
        self.latent_channels = vae.config.latent_channels
        self.bn = torch.nn.Module()
        self.bn.running_mean = torch.nn.Parameter(torch.zeros(4 * self.latent_channels))
        self.bn.std = torch.nn.Parameter(torch.ones(4 * self.latent_channels))

    def forward(self, latents):
        _, rows, columns, _ = latents.shape
        z = latents * self.bn.std + self.bn.running_mean
        z = z.reshape(rows, columns, self.latent_channels, 2, 2).permute(2, 0, 3, 1, 4)
        z = z.reshape(1, self.latent_channels, 2 * rows, 2 * columns)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z)

    def example(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, Any]], str]:
        """Example inputs (the picture's size is two symbols), their dynamic axes, the output's name."""
        rows, columns = torch.export.Dim("rows", min=1), torch.export.Dim("columns", min=1)
        inputs = {"latents": torch.zeros(1, 6, 5, 4 * self.latent_channels)}
        return inputs, {"latents": {1: rows, 2: columns}}, "image"
