"""What the four configs of a pipeline must say, and the facts that are read from them.

Bitbrush runs what the classes compute with the options below; an option it does not know is refused
here, before anything is exported.
"""

from __future__ import annotations

from typing import Any

from exporter.errors import BadArguments, BadCheckpoint

Configs = dict[str, dict[str, Any]]

KLEIN_LAYERS = (9, 18, 27)  # hidden states that klein stacks; no config records them

CLASSES = {
    "transformer": ("transformer/config.json", ("Flux2Transformer2DModel",)),
    "text_encoder": ("text_encoder/config.json", ("Qwen3ForCausalLM", "Qwen3Model")),
    "vae": ("vae/config.json", ("AutoencoderKLFlux2",)),
    "scheduler": ("scheduler/scheduler_config.json", ("FlowMatchEulerDiscreteScheduler",)),
}
# key -> smallest value allowed
INTEGERS = {
    "transformer": {
        "in_channels": 1,
        "num_layers": 0,
        "num_single_layers": 0,
        "attention_head_dim": 1,
        "num_attention_heads": 1,
        "joint_attention_dim": 1,
        "timestep_guidance_channels": 2,
    },
    "text_encoder": {
        "hidden_size": 1,
        "intermediate_size": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 1,
    },
    "vae": {"latent_channels": 1, "layers_per_block": 1, "norm_num_groups": 1},
    "scheduler": {"num_train_timesteps": 1},
}
# key -> the only value Bitbrush computes; a missing key means that value
FIXED: dict[str, dict[str, Any]] = {
    "transformer": {"patch_size": 1, "guidance_embeds": False},
    "text_encoder": {"hidden_act": "silu", "use_sliding_window": False},
    "vae": {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "patch_size": [2, 2]},
    "scheduler": {
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "invert_sigmas": False,
        "stochastic_sampling": False,
    },
}


def check_configs(configs: Configs) -> None:
    """Raise BadCheckpoint unless the classes, sizes and options are ones that Bitbrush computes."""
    for component, (file, classes) in CLASSES.items():
        config = configs[component]
        found = config.get("_class_name") or (config.get("architectures") or [None])[0]
        if found not in classes:
            raise BadCheckpoint(f"{file}: expected class {' or '.join(classes)}, found {found!r}")
        for key, smallest in INTEGERS[component].items():
            value = config.get(key)
            if type(value) is not int or value < smallest:
                raise BadCheckpoint(
                    f"{file}: expected {key} to be a whole number of at least {smallest}, found {value!r}"
                )
        for key, expected in FIXED[component].items():
            if config.get(key, expected) != expected:
                raise BadCheckpoint(
                    f"{file}: expected {key} {expected!r}, found {config[key]!r}, which is not supported"
                )
    shift = configs["scheduler"].get("time_shift_type", "exponential")
    if shift not in ("exponential", "linear"):
        raise BadCheckpoint(
            f"{CLASSES['scheduler'][0]}: expected time_shift_type exponential or linear, found {shift!r}"
        )
    _check_transformer(configs)
    text_rotary(configs)
    channels = configs["vae"].get("block_out_channels")
    if not _whole_numbers(channels):
        raise BadCheckpoint(f"vae/config.json: expected block_out_channels as a list of sizes, found {channels!r}")


def _check_transformer(configs: Configs) -> None:
    transformer = configs["transformer"]
    axes, head = transformer.get("axes_dims_rope"), transformer["attention_head_dim"]
    if not _whole_numbers(axes) or len(axes) != 4 or sum(axes) != head or any(axis % 2 for axis in axes):
        raise BadCheckpoint(
            f"transformer/config.json: expected axes_dims_rope of four even sizes that add up to {head}, found {axes!r}"
        )
    latents = 4 * configs["vae"]["latent_channels"]
    if transformer["in_channels"] != latents or transformer.get("out_channels") not in (None, latents):
        raise BadCheckpoint(
            f"transformer/config.json: expected in_channels and out_channels {latents} (4 x the VAE's"
            " latent_channels),"
            f" found {transformer['in_channels']} and {transformer.get('out_channels')}"
        )


def choose_layers(configs: Configs, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """The hidden states to stack: those asked for, or klein's. Index 0 is the embedding output.

    Raises BadArguments if the encoder has too few layers, or if the stacked states do not have the
    width that the transformer takes.
    """
    layers = tuple(asked) if asked is not None else KLEIN_LAYERS
    depth = configs["text_encoder"]["num_hidden_layers"]
    listed = ",".join(map(str, layers))
    if not layers or any(layer < 0 or layer > depth for layer in layers):
        raise BadArguments(
            f"--encoder-layers: expected hidden states among 0..{depth} (text_encoder/config.json),"
            f" found {listed or 'none'}; pass --encoder-layers with the ones this model was trained with"
        )
    hidden, joint = configs["text_encoder"]["hidden_size"], configs["transformer"]["joint_attention_dim"]
    if len(layers) * hidden != joint:
        raise BadArguments(
            f"--encoder-layers: expected {joint / hidden:g} layers (joint_attention_dim {joint} / hidden_size"
            f" {hidden}), found {len(layers)}: {listed}"
        )
    return layers


def text_rotary(configs: Configs) -> dict[str, Any]:
    """{"head_size", "theta"} of the encoder's rotary embedding; raises if it is scaled in any way."""
    config = configs["text_encoder"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise BadCheckpoint(
            f"text_encoder/config.json: expected rope_type default, found {kind!r}, which is not supported"
        )
    theta = rope.get("rope_theta", config.get("rope_theta"))
    if not isinstance(theta, (int, float)) or theta <= 0:
        raise BadCheckpoint(f"text_encoder/config.json: expected rope_theta as a number, found {theta!r}")
    return {"head_size": config.get("head_dim") or 128, "theta": theta}


def downscale(configs: Configs) -> int:
    """Pixels per latent token along a side: the VAE's factor times its 2x2 patch."""
    return 2 * 2 ** (len(configs["vae"]["block_out_channels"]) - 1)


_SMALL_PRESETS = [(1, 1), (1.5, 1), (1, 1.5), (1.5, 1.5), (2, 2)]  # in native sides

# Sizes that PrismML trained klein-sized low-bit models at, width x height. Its 2:1 of a megapixel is left out: every
# visit would fetch 0.6 MB more, three rows of the table of modulations.
_LARGE_PRESETS = [
    (512, 512),
    (624, 416),
    (416, 624),
    (704, 352),
    (352, 704),
    (1024, 1024),
    (1248, 832),
    (832, 1248),
]


def picture_sizes(configs: Configs) -> dict[str, Any]:
    """The manifest's `sizes`: what the page offers and accepts, [width, height] in pixels.

    A VAE whose sample_size is at most 512 belongs to a small model, native at that size: it is offered, pictures
    of 3:2 and 2:3 with that height or width, and squares of one and a half times and twice the side; accepted is
    anything from a quarter to four times the side. Otherwise klein's presets.
    """
    multiple = downscale(configs)
    sample = configs["vae"].get("sample_size", 1024)
    side = sample[0] if isinstance(sample, list) and sample else sample
    if type(side) is not int or side < 1:
        raise BadCheckpoint(f"vae/config.json: expected sample_size as a whole number, found {sample!r}")

    def fit(pixels: float) -> int:
        return max(multiple, round(pixels / multiple) * multiple)

    if side > 512:
        presets = [[fit(width), fit(height)] for width, height in _LARGE_PRESETS]
        low, high = 256, 2048
    else:
        presets = [[fit(x * side), fit(y * side)] for x, y in _SMALL_PRESETS]
        low, high = side / 4, 4 * side
    return {
        "multiple": multiple,
        "minimum": fit(low),
        "maximum": fit(high),
        "default": presets[0],
        "presets": presets,
    }


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item > 0 for item in value)
