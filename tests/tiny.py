"""Small random-weight FLUX.2-klein pipelines, written as complete diffusers folders in a second or two.

    folder = make_pipeline(tmp_path / "tiny", heads=2, head_dim=64, double=1, single=2, ternary=True)
    pipe = Flux2KleinPipeline.from_pretrained(folder)

The weights are random but scaled so that activations stay finite and of order one, modulation and gates
matter, and the decoded picture lies roughly within -1..1: a wrong kernel shows up in the picture.
"""

import json
from functools import lru_cache
from pathlib import Path

import torch

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The shape of Qwen3's template with thinking switched off: the prompt goes in verbatim.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN_ADDED_TOKENS = [
    "<think>",
    "</think>",
]  # match as whole tokens, but are not flagged special, as in Qwen3

CORPUS = [
    "a red apple on a blue background",
    "three strawberries on a white background",
    "a rocket flying over the city at night",
    "a dog to the left of a cat",
    "pizza and hamburger",
    "user assistant system think background picture photo",
    "The quick brown fox jumps over the lazy dog.",
    "火箭，蓝色背景",
    "一个红苹果在蓝色背景上",
    "三颗草莓，白色背景",
    "独角兽和彩虹，粉色背景",
    "Ein roter Apfel auf blauem Grund",
    "красное яблоко на синем фоне",
    "青い背景に赤いリンゴ",
    "don't can't we'll they've 1234567890",
    "line\nbreaks\r\n  and   spaces\t\ttabs",
]


def make_pipeline(
    folder: str | Path,
    *,
    heads: int = 2,
    head_dim: int = 64,
    double: int = 1,
    single: int = 2,
    mlp_ratio: float = 3.0,
    text_hidden: int = 128,
    text_heads: int = 2,
    text_kv_heads: int = 1,
    text_head_dim: int = 64,
    layers: tuple[int, ...] = (1, 2, 3),
    encoder_depth: int | None = None,
    vocab: int = 640,
    text_length: int = 32,
    vae_channels: tuple[int, ...] = (16, 32, 32, 32),
    decoder_channels: tuple[int, ...] | None = None,
    latent_channels: int = 4,
    norm_groups: int = 8,
    sample_size: int = 64,
    binary: bool = False,
    ternary: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a random-weight `Flux2KleinPipeline` folder and return its path.

    heads, head_dim     transformer width = heads * head_dim; head_dim a multiple of 8
    double, single      numbers of transformer blocks, 0 allowed for either
    layers              hidden states that a caller stacks (export with the same `--encoder-layers`);
                        they fix joint_attention_dim = len(layers) * text_hidden
    encoder_depth       layers of the text encoder; one more than the largest of `layers` if not given
    vocab               rows of the embedding; the tokenizer has at most as many tokens
    text_length         the tokenizer's model_max_length, so the bundle's text length (at most 512)
    binary, ternary     make every block linear whose K is a multiple of 128 exactly s*{-1,+1} or
                        s*{-1,0,+1} per 128 values of a row, s representable in float16
    dtype               of the saved weights

    The folder is written with safetensors files of one shard a component.
    """
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = Path(folder)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = make_tokenizer(vocab, text_length)

    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4 * latent_channels,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=len(layers) * text_hidden,
        mlp_ratio=mlp_ratio,
        axes_dims_rope=(head_dim // 4,) * 4,
        guidance_embeds=False,
    )
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab,
            hidden_size=text_hidden,
            intermediate_size=2 * text_hidden,
            num_hidden_layers=encoder_depth or max(layers) + 1,
            num_attention_heads=text_heads,
            num_key_value_heads=text_kv_heads,
            head_dim=text_head_dim,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=vae_channels,
        decoder_block_out_channels=decoder_channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=norm_groups,
        sample_size=sample_size,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )

    randomise(transformer, generator)
    randomise(text_encoder, generator)
    randomise(vae, generator)
    if binary or ternary:
        low_bit(transformer, zeros=ternary)

    transformer.to(dtype).save_pretrained(folder / "transformer")
    text_encoder.to(dtype).save_pretrained(folder / "text_encoder")
    vae.to(dtype).save_pretrained(folder / "vae")
    scheduler.save_pretrained(folder / "scheduler")
    tokenizer.save_pretrained(folder / "tokenizer")
    index = {
        "_class_name": "Flux2KleinPipeline",
        "is_distilled": True,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


@torch.no_grad()
def randomise(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Fill all weights: matrices keep the size of activations, biases and norms are near 0 and 1.

    Statistics of the latents are a mean of about 0.1 and a variance of 0.5..1.5. Two matrices are
    smaller: modulations, so that gates stay below one, and the decoder's last convolution, so that
    the picture is not cut off at black and white.
    """
    for name, value in list(module.named_parameters()) + list(module.named_buffers()):
        if name.endswith("num_batches_tracked") or "inv_freq" in name:
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name == "bn.running_var":
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif name.endswith("embed_tokens.weight"):
            value.copy_(noise)
        elif value.ndim >= 2:
            fan_in = value[0].numel()
            gain = 0.7 if name.endswith("decoder.conv_out.weight") else 0.5 if "modulation" in name else 1.0
            value.copy_(noise * gain / fan_in**0.5)
        elif "norm" in name and name.endswith("weight"):
            value.copy_(1 + 0.1 * noise)
        else:
            value.copy_(0.1 * noise)


@torch.no_grad()
def low_bit(transformer: torch.nn.Module, *, zeros: bool) -> None:
    """Make the block linears exactly binary, or ternary with `zeros`, per group of 128 along K.

    Written without the exporter's packing, so that the exporter can be tested against it.
    """
    for name, value in transformer.named_parameters():
        if value.ndim != 2 or "transformer_blocks." not in name or value.shape[1] % 128:
            continue
        groups = value.view(value.shape[0], -1, 128)
        scale = groups.abs().mean(dim=2, keepdim=True)
        signs = torch.where(groups < 0, -1.0, 1.0)
        if zeros:
            kept = groups.abs() > 0.5 * scale
            signs = signs * kept
            scale = (groups.abs() * kept).sum(dim=2, keepdim=True) / kept.sum(dim=2, keepdim=True)
        # bfloat16 values of this size are exact in float16, so every dtype of checkpoint keeps them
        value.copy_((signs * scale.to(torch.bfloat16).float()).view_as(value))


@lru_cache(maxsize=8)
def make_tokenizer(vocab: int, text_length: int):
    """A byte-level BPE `Qwen2Tokenizer` with Qwen's split rule, added tokens and chat template.

    `vocab` counts ordinary and added tokens; at least 256 bytes + 5 added tokens. Fewer come out if
    the small corpus runs out of pairs.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )
    from transformers import Qwen2TokenizerFast

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(SPECIAL_TOKENS) - len(PLAIN_ADDED_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 2, trainer)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN_ADDED_TOKENS])
    return Qwen2TokenizerFast(
        tokenizer_object=backend,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="right",
        model_max_length=text_length,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
