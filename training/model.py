"""Architecture of `pocket`: configurations, builders, prompt encoding and saving as a diffusers folder.

Every component is a stock diffusers or transformers class, so `Flux2KleinPipeline.from_pretrained`
opens the saved folder. Sizes at 256x256: 256 image tokens of 64 channels, 48 text tokens of 3*256.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

TEXT_LENGTH = 48  # rows that reach the transformer, padding included
TEXT_LAYERS = (1, 3, 5)  # hidden_states indices that are concatenated (0 is the embedding output)
VOCAB_SIZE = 5120  # rows of the embedding table; the tokenizer uses at most as many
LATENT_CHANNELS = 64  # 16 VAE channels x a 2x2 patch

TRANSFORMER_CONFIG = dict(
    patch_size=1,
    in_channels=LATENT_CHANNELS,
    num_layers=2,
    num_single_layers=8,
    attention_head_dim=128,
    num_attention_heads=3,
    joint_attention_dim=3 * 256,
    timestep_guidance_channels=256,
    mlp_ratio=3.0,
    axes_dims_rope=(32, 32, 32, 32),
    rope_theta=2000,
    guidance_embeds=False,
)

TEXT_CONFIG = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,  # layer 5 is never used: it keeps hidden_states[5] free of the final norm
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    attention_bias=False,
    initializer_range=0.02,
)

VAE_CONFIG = dict(
    block_out_channels=(32, 64, 128, 128),
    decoder_block_out_channels=(32, 64, 96, 96),
    layers_per_block=2,
    latent_channels=16,
    norm_num_groups=16,
    sample_size=256,
    patch_size=(2, 2),
    batch_norm_eps=1e-4,
)

SCHEDULER_CONFIG = dict(
    base_image_seq_len=256,
    base_shift=0.5,
    max_image_seq_len=4096,
    max_shift=1.15,
    num_train_timesteps=1000,
    shift=3.0,
    time_shift_type="exponential",
    use_dynamic_shifting=True,
)


# --tiny: the same structure, small enough to train some steps on a CPU in seconds
TINY_TRANSFORMER = dict(num_layers=1, num_single_layers=1, num_attention_heads=1, joint_attention_dim=3 * 64)
TINY_TEXT = dict(hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
TINY_VAE = dict(block_out_channels=(16, 16, 16, 16), decoder_block_out_channels=(16, 16, 16, 16), layers_per_block=1)


def build_transformer(tiny: bool = False) -> Flux2Transformer2DModel:
    """The velocity network, about 26 M parameters in float32."""
    return Flux2Transformer2DModel(**TRANSFORMER_CONFIG | (TINY_TRANSFORMER if tiny else {}))


def build_vae(tiny: bool = False) -> AutoencoderKLFlux2:
    """The autoencoder: [B, 3, H, W] in -1..1 <-> [B, 16, H/8, W/8]."""
    return AutoencoderKLFlux2(**VAE_CONFIG | (TINY_VAE if tiny else {}))


def build_text_encoder(pad_id: int = 0, eos_id: int = 2, tiny: bool = False) -> Qwen3ForCausalLM:
    """The Qwen3-shaped prompt encoder, about 6 M parameters with the tied embedding.

    Embeddings start with a deviation of 0.3, not Qwen's 0.02: the transformer reads unnormalised hidden
    states, in which tokens are then told apart from the first step on.
    """
    config = Qwen3Config(
        **TEXT_CONFIG | (TINY_TEXT if tiny else {}), pad_token_id=pad_id, eos_token_id=eos_id, bos_token_id=None
    )
    config._attn_implementation = "sdpa"
    text_encoder = Qwen3ForCausalLM(config)
    torch.nn.init.normal_(text_encoder.model.embed_tokens.weight, std=0.3)
    return text_encoder


def encode_prompt(text_encoder: Qwen3ForCausalLM, ids: torch.Tensor, pad_id: int) -> torch.Tensor:
    """Token ids [B, 48] -> prompt embedding [B, 48, 768]: the states of TEXT_LAYERS side by side.

    The same numbers as the pipeline's own encoding (causal, padding keys masked), written out so that
    it compiles to one graph and stops at the last layer that is needed.
    """
    model = text_encoder.model
    hidden = model.embed_tokens(ids)
    length = ids.shape[1]
    positions = torch.arange(length, device=ids.device)[None]
    rotary = model.rotary_emb(hidden, positions)
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    mask = causal[None, None] & (ids != pad_id)[:, None, None, :]
    states = []
    for index, layer in enumerate(model.layers[: TEXT_LAYERS[-1]], start=1):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        if index in TEXT_LAYERS:
            states.append(hidden)
    return torch.cat(states, dim=-1)


def position_ids(height: int, width: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Image ids [h*w, 4] = (0, y, x, 0) and text ids [48, 4] = (0, 0, 0, l)."""
    zero = torch.zeros(1, dtype=torch.long)
    image = torch.cartesian_prod(zero, torch.arange(height), torch.arange(width), zero)
    text = torch.cartesian_prod(zero, zero, zero, torch.arange(TEXT_LENGTH))
    return image.to(device), text.to(device)


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """[B, 16, 2h, 2w] -> [B, 64, h, w], packed channel = c*4 + dy*2 + dx."""
    return torch.nn.functional.pixel_unshuffle(latents, 2)


def unpack_latents(latents: torch.Tensor) -> torch.Tensor:
    """[B, 64, h, w] -> [B, 16, 2h, 2w]."""
    return torch.nn.functional.pixel_shuffle(latents, 2)


def save_pipeline(folder: Path, vae, text_encoder, tokenizer, transformer) -> None:
    """Write a complete diffusers folder for Flux2KleinPipeline with `is_distilled: true`."""
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=True,
    )
    pipeline.save_pretrained(str(folder))
