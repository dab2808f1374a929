"""Names in GGUF files -> names of diffusers and transformers, and the rows that each of them means.

Transformers come under the names of the original release (q, k and v fused, the halves of the final
modulation the other way round than in diffusers) or under diffusers' own; text encoders under those of
the architecture qwen3, whose rows are in transformers' order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from exporter.errors import BadCheckpoint
from exporter.sources.gguf_container import GgufFile

PREFIX = "model.diffusion_model."
SWAPPED = "final_layer.adaLN_modulation.1.weight"  # (shift, scale); diffusers has (scale, shift)
BLOCK = re.compile(r"(\w+)\.(0|[1-9]\d{0,3})\.(.+)")


@dataclass(frozen=True)
class View:
    """A tensor under its canonical name: row ranges of a tensor in the file, one after the other."""

    stored: str
    shape: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Names:
    """One way of naming a model. Several canonical names for one tensor share its rows evenly.

    model     what messages call it
    single    name -> canonical name
    blocks    block list -> (canonical block list, {name inside a block -> canonical names})
    optional  as `single`, for tensors that may be missing
    """

    model: str
    single: dict[str, str]
    blocks: dict[str, tuple[str, dict[str, tuple[str, ...]]]]
    optional: dict[str, str] = field(default_factory=dict)


def _double_block() -> dict[str, tuple[str, ...]]:
    names = {}
    for stream, query, norm, out, ff in (
        ("img", "to_{}", "norm_{}", "to_out.0", "ff"),
        ("txt", "add_{}_proj", "norm_added_{}", "to_add_out", "ff_context"),
    ):
        names[f"{stream}_attn.qkv.weight"] = tuple(f"attn.{query.format(part)}.weight" for part in "qkv")
        names[f"{stream}_attn.proj.weight"] = (f"attn.{out}.weight",)
        names[f"{stream}_attn.norm.query_norm.scale"] = (f"attn.{norm.format('q')}.weight",)
        names[f"{stream}_attn.norm.key_norm.scale"] = (f"attn.{norm.format('k')}.weight",)
        names[f"{stream}_mlp.0.weight"] = (f"{ff}.linear_in.weight",)
        names[f"{stream}_mlp.2.weight"] = (f"{ff}.linear_out.weight",)
    return names


ORIGINAL = Names(
    "FLUX.2-klein",
    {
        "img_in.weight": "x_embedder.weight",
        "txt_in.weight": "context_embedder.weight",
        "time_in.in_layer.weight": "time_guidance_embed.timestep_embedder.linear_1.weight",
        "time_in.out_layer.weight": "time_guidance_embed.timestep_embedder.linear_2.weight",
        "double_stream_modulation_img.lin.weight": "double_stream_modulation_img.linear.weight",
        "double_stream_modulation_txt.lin.weight": "double_stream_modulation_txt.linear.weight",
        "single_stream_modulation.lin.weight": "single_stream_modulation.linear.weight",
        "final_layer.linear.weight": "proj_out.weight",
        SWAPPED: "norm_out.linear.weight",
    },
    {
        "double_blocks": ("transformer_blocks", _double_block()),
        "single_blocks": (
            "single_transformer_blocks",
            {
                "linear1.weight": ("attn.to_qkv_mlp_proj.weight",),
                "linear2.weight": ("attn.to_out.weight",),
                "norm.query_norm.scale": ("attn.norm_q.weight",),
                "norm.key_norm.scale": ("attn.norm_k.weight",),
            },
        ),
    },
)
DIFFUSERS = Names(
    "FLUX.2-klein",
    {name: name for name in ORIGINAL.single.values()},
    {
        blocks: (blocks, {name: (name,) for group in inside.values() for name in group})
        for blocks, inside in ORIGINAL.blocks.values()
    },
)
QWEN3 = Names(
    "Qwen3",
    {"token_embd.weight": "model.embed_tokens.weight"},
    {
        "blk": (
            "model.layers",
            {
                "attn_norm.weight": ("input_layernorm.weight",),
                "attn_q.weight": ("self_attn.q_proj.weight",),
                "attn_q_norm.weight": ("self_attn.q_norm.weight",),
                "attn_k.weight": ("self_attn.k_proj.weight",),
                "attn_k_norm.weight": ("self_attn.k_norm.weight",),
                "attn_v.weight": ("self_attn.v_proj.weight",),
                "attn_output.weight": ("self_attn.o_proj.weight",),
                "ffn_norm.weight": ("post_attention_layernorm.weight",),
                "ffn_gate.weight": ("mlp.gate_proj.weight",),
                "ffn_up.weight": ("mlp.up_proj.weight",),
                "ffn_down.weight": ("mlp.down_proj.weight",),
            },
        )
    },
    {"output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"},
)


def canonical(file: GgufFile) -> dict[str, View]:
    """Canonical name -> view, for all tensors of a file.

    Raises BadCheckpoint for tensors that belong to no model Bitbrush knows, and for missing ones.
    """
    stored: dict[str, str] = {}
    for name in file.tensors:
        plain = name.removeprefix(PREFIX)
        if plain in stored:
            raise BadCheckpoint(f"{file.label}: expected tensor {plain} once, found it with and without {PREFIX}")
        stored[plain] = name
    names = _choose(file, stored)
    views: dict[str, View] = {}
    counts = dict.fromkeys(names.blocks, 0)
    for plain, name in stored.items():
        block = BLOCK.fullmatch(plain)
        if block and block[1] in names.blocks:
            folder, inside = names.blocks[block[1]]
            targets = tuple(f"{folder}.{block[2]}.{target}" for target in inside.get(block[3], ()))
            counts[block[1]] = max(counts[block[1]], int(block[2]) + 1)
        else:
            target = names.single.get(plain) or names.optional.get(plain)
            targets = (target,) if target else ()
        if not targets:
            raise BadCheckpoint(f"{file.label}: expected tensors of {names.model}, found {name}")
        views.update(_views(file, name, targets, swapped=plain == SWAPPED))
    wanted = list(names.single)
    for blocks, (_, inside) in names.blocks.items():
        wanted += [f"{blocks}.{i}.{name}" for i in range(counts[blocks]) for name in inside]
    for plain in wanted:
        if plain not in stored:
            raise BadCheckpoint(f"{file.label}: expected tensor {plain}, found {len(stored)} others")
    return views


def _choose(file: GgufFile, stored: dict[str, str]) -> Names:
    if "token_embd.weight" in stored or any(name.startswith("blk.") for name in stored):
        if file.architecture != "qwen3":
            raise BadCheckpoint(f"{file.label}: expected architecture qwen3, found {file.architecture!r}")
        return QWEN3
    for names in (ORIGINAL, DIFFUSERS):
        starts = (*names.single, *(f"{blocks}." for blocks in names.blocks))
        if any(name.startswith(start) for name in stored for start in starts):
            return names
    raise BadCheckpoint(
        f"{file.label}: expected tensors of FLUX.2-klein or Qwen3, found {next(iter(file.tensors))} and others"
    )


def _views(file: GgufFile, name: str, targets: tuple[str, ...], swapped: bool) -> dict[str, View]:
    shape = file.tensors[name].shape
    parts = 2 if swapped else len(targets)
    if parts == 1:
        rows = 1 if len(shape) == 1 else shape[0]
        if len(shape) > 2:
            raise BadCheckpoint(f"{file.label}: tensor {name}: expected one or two axes, found shape {list(shape)}")
        return {targets[0]: View(name, shape, ((0, rows),))}
    if len(shape) != 2 or shape[0] % parts:
        raise BadCheckpoint(
            f"{file.label}: tensor {name}: expected a matrix whose rows divide by {parts}, found shape {list(shape)}"
        )
    rows = shape[0] // parts
    spans = [(part * rows, (part + 1) * rows) for part in range(parts)]
    if swapped:
        return {targets[0]: View(name, shape, (spans[1], spans[0]))}
    return {target: View(name, (rows, shape[1]), (span,)) for target, span in zip(targets, spans, strict=True)}
