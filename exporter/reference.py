"""The reference for a bundle: diffusers' pipeline holding the very weights that the bundle holds.

    python -m exporter.reference BUNDLE FOLDER      saves it as a diffusers folder

Weights are de-quantized to float32, so pictures of this pipeline and of the browser differ by rounding
alone. What a bundle leaves out (the VAE's encoder half, text encoder layers above the used ones) keeps
a seeded random initialisation: no picture depends on it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporter.bundle import Bundle
from exporter.errors import BadArguments, BadBundle, BitbrushError
from exporter.output import new_folder
from exporter.prompt import open_tokenizer
from exporter.storage import BATCH_NORM_STD, PART_SUFFIXES, StoredTensor, stored_like

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline


def load_pipeline(bundle_path: str | Path) -> Flux2KleinPipeline:
    """The bundle as a `Flux2KleinPipeline` in float32 on the CPU.

    Call it with the bundle's `text.length` as max_sequence_length and `text.layers` as
    text_encoder_out_layers. Raises BadBundle.
    """
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    bundle = Bundle(bundle_path)
    configs = bundle.configs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = Flux2Transformer2DModel.from_config(configs["transformer"])
        vae = AutoencoderKLFlux2.from_config(configs["vae"])
        text_encoder = Qwen3ForCausalLM(Qwen3Config(**{**configs["text_encoder"], "dtype": "float32"}))
    for component in ("denoiser", "modulation"):
        _fill(bundle, component, transformer, lambda name: name)
    _fill(bundle, "encoder", text_encoder, lambda name: f"model.{name}")
    _fill(bundle, "decoder", vae, lambda name: name)
    unset = {name for name in transformer.state_dict() if _used(name, configs["transformer"])}
    unset -= _bases(bundle, "denoiser") | _bases(bundle, "modulation")
    if unset:
        raise BadBundle(f"{bundle.path}: expected every tensor of the denoiser, found no {min(unset)}")
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(configs["scheduler"]),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=open_tokenizer(bundle.path / bundle.manifest["text"]["tokenizer"]),
        transformer=transformer.eval(),
        is_distilled=True,
    )


def _used(name: str, config: dict[str, Any]) -> bool:
    """Whether the denoiser's graph can see the tensor: modulations of absent blocks are in no bundle."""
    kind = name.partition("_stream_modulation")[0]
    return (
        bool(config[{"double": "num_layers", "single": "num_single_layers"}[kind]])
        if kind in ("double", "single")
        else True
    )


def _base(name: str) -> tuple[str, str]:
    """Part name -> (tensor name, suffix or "")."""
    suffix = next((suffix for suffix in PART_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix), suffix


def _bases(bundle: Bundle, component: str) -> set[str]:
    table = bundle.manifest["modulation"]["table"]  # computed, not of the checkpoint
    return {_base(name)[0] for name in bundle.tensors(component) if name != table}


@torch.no_grad()
def _fill(bundle: Bundle, component: str, module: torch.nn.Module, target: Any) -> None:
    """Copy a component's tensors into `module`; `target` maps a bundle's name to the module's."""
    state = module.state_dict()  # shares memory with the module
    for base in sorted(_bases(bundle, component)):
        records = {
            suffix: record
            for name, record in bundle.tensors(component).items()
            for found, suffix in [_base(name)]
            if found == base
        }
        name = "bn.running_var" if base == "bn.std" else target(base)
        if name not in state:
            raise BadBundle(f"{bundle.path}: expected tensors of {type(module).__name__}, found {base}")
        shapes = {suffix: tuple(record["shape"]) for suffix, record in records.items()}
        try:
            stored = stored_like(base, shapes, tuple(state[name].shape))
        except ValueError as problem:
            raise BadBundle(f"{bundle.path}: {component}: {problem}") from None
        if base == "bn.std":
            stored = StoredTensor(
                base, "f32", stored.shape, name, transform=BATCH_NORM_STD, eps=module.config.batch_norm_eps
            )
        parts = {base + suffix: bundle.tensor(component, base + suffix) for suffix in records}
        state[name].copy_(torch.from_numpy(stored.restore(parts)))


def main(arguments: list[str]) -> int:
    """Command line; returns the exit code."""
    try:
        if len(arguments) != 2:
            raise BadArguments(f"expected BUNDLE and FOLDER, found {len(arguments)} arguments")
        pipeline = load_pipeline(arguments[0])
        with new_folder(Path(arguments[1])) as folder:
            pipeline.save_pretrained(folder)
    except BitbrushError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
