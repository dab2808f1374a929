"""Checkpoints that are not there: a model's exact shapes with seeded random weights, made as they are read.

    with open_synthetic("klein-4b", weights="ternary") as checkpoint:
        export_bundle(checkpoint, out, weights="ternary")

Sizes, memory and speed can so be measured on the true shapes without the weights. Every tensor comes from
a generator seeded with its own name: the same in any order, and memory holds one at a time. Packed
matrices are made as codes and scales; nothing is rounded.

The weights keep activations of the size that the real network's have (`_deviation`), so that nothing
overflows and every block changes the result; the pictures show noise.

Qwen's tokenizer cannot be made up: the embedded model's stands in for it, whose ids all lie below
Qwen3's 151,936. Its length is klein's, so a prompt gives 512 rows of features as there.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from exporter import packing
from exporter.checkpoint import INDEX, TOKENIZER_FILES, Checkpoint
from exporter.configs import Configs, check_configs
from exporter.errors import BadArguments, BadCheckpoint
from exporter.klein import KLEIN_4B
from exporter.sources.source import Given

TOKENIZER = Path(__file__).resolve().parents[1] / "models/pocket/ternary/tokenizer"
KLEIN_LENGTH = 131072  # model_max_length of klein's tokenizer

MODELS = {"klein-4b": KLEIN_4B}

# Ending of a matrix's name -> its gain: standard deviation times √inputs, 1 for all others.
_GAINS = {
    # Residual branches that lift the text features (three hidden states) to klein's size, about 15.
    "self_attn.o_proj.weight": 3.2,
    "mlp.down_proj.weight": 3.2,
    "context_embedder.weight": 1 / 15,
    # Shift, scale and gate of about a half: every block counts, and 25 of them do not blow up.
    "modulation_img.linear.weight": 3.0,
    "modulation_txt.linear.weight": 3.0,
    "single_stream_modulation.linear.weight": 3.0,
    "norm_out.linear.weight": 3.0,
    # Few pixels beyond black and white.
    "decoder.conv_out.weight": 0.7,
}
_NOISE = 0.1  # standard deviation of biases, and of norm weights around 1
# Standard deviation of the values of a group whose scale is 1, all codes equally likely.
_SPREADS = {kind: math.sqrt((2**bits) ** 2 - 1) / math.sqrt(12) for kind, bits in packing.BITS.items()}
_SPREADS |= {"binary": 1.0, "ternary": math.sqrt(2 / 3)}
# Byte of four ternary codes for each number of four digits to base 3.
_TERNARY_BYTES = sum((np.arange(81) // 3**digit % 3) << (2 * digit) for digit in range(4)).astype(np.uint8)


class RandomTensors:
    """The tensors of one component, made up: a Source (exporter/sources/source.py).

    Args:
        component: transformer, text_encoder or vae.
        shapes: name -> shape in the checkpoint.
        choose: (name, shape) -> (kind, group), as exporter/graph/store_weights.py decides it.
        seed: other seeds give other weights.
    """

    def __init__(
        self,
        component: str,
        shapes: dict[str, tuple[int, ...]],
        choose: Callable[[str, tuple[int, ...]], tuple[str, int]],
        seed: int,
    ) -> None:
        self._component, self._shapes, self._choose, self._seed = component, shapes, choose, seed

    def names(self) -> list[str]:
        return sorted(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def label(self, name: str) -> str:
        return f"{self._component} (synthetic)"

    def tensor(self, name: str) -> np.ndarray:
        given, shape = self.given(name), self._shapes[name]
        if given is not None:
            return packing.unpack(given.kind, given.parts, shape[1], given.group)
        if name.endswith(("running_mean", "num_batches_tracked")):
            return np.zeros(shape, np.float32)
        if name.endswith("running_var"):
            return np.ones(shape, np.float32)
        values = self._generator(name).standard_normal(shape, np.float32)
        values *= np.float32(_deviation(name, shape))
        if len(shape) == 1 and name.endswith("weight"):
            values += 1
        return values

    def given(self, name: str) -> Given | None:
        shape = self._shapes[name]
        kind, group = self._choose(name, shape)
        if kind not in packing.BITS:
            return None
        shapes = packing.part_shapes_checked(kind, *shape, group, name)
        generator = self._generator(name)
        parts = {".codes": _codes(kind, shapes[".codes"][1], generator)}
        scales = generator.uniform(0.75, 1.25, shapes[".scales"][1])
        scales *= _deviation(name, shape) / _SPREADS[kind]
        parts[".scales"] = scales.astype(np.float16)
        if kind in packing.AFFINE:  # the middle code is 0
            middle = (2 ** packing.BITS[kind] - 1) / 2
            parts[".offsets"] = (-middle * parts[".scales"].astype(np.float32)).astype(np.float16)
        return Given(kind, group, parts)

    def _generator(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self._seed} {self._component} {name}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _deviation(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a tensor's values: linears and convolutions of inputs of size 1 give outputs of size 1."""
    if len(shape) < 2:
        return _NOISE
    if name.endswith("embed_tokens.weight"):
        return 1.0
    gain = next((gain for ending, gain in _GAINS.items() if name.endswith(ending)), 1.0)
    return gain / math.sqrt(math.prod(shape[1:]))


def _codes(kind: str, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """u32 words of codes, all equally likely."""
    rows, words = shape
    if kind == "ternary":
        numbers = generator.integers(len(_TERNARY_BYTES), size=(rows, 4 * words), dtype=np.uint8)
        return _TERNARY_BYTES[numbers].view("<u4")
    return generator.integers(2**32, size=shape, dtype=np.uint32)


class Synthetic(Checkpoint):
    """A checkpoint of random weights; `folder` holds its few files and must outlive it.

    Everything that reads tensors is Checkpoint's own; only opening differs, as there are no weight files.
    """

    def __init__(self, folder: Path, configs: Configs, *, weights: str, encoder_bits: int, seed: int) -> None:
        from exporter.graph.store_weights import denoiser_kind, dense_kind, encoder_kind

        check_configs(configs)
        self.path, self.index, self.configs = folder, INDEX, configs
        self.license_files = []
        self.tokenizer_folder, self.tokenizer_files = _write_tokenizer(folder / "tokenizer")
        chosen = {
            "transformer": denoiser_kind(weights, []),
            "text_encoder": encoder_kind(encoder_bits, []),
            "vae": dense_kind,
        }
        self.folders = {component: folder / component for component in chosen}
        self._sources = {
            component: RandomTensors(component, shapes, chosen[component], seed)
            for component, shapes in _shapes(configs).items()
        }
        self._stored_names = {component: self._canonical_names(component) for component in chosen}


@contextmanager
def open_synthetic(
    model: str, *, weights: str, encoder_bits: int = 4, seed: int = 0, configs: Configs | None = None
) -> Iterator[Synthetic]:
    """A checkpoint of random weights that `export_bundle` takes in place of a folder.

    Args:
        model: its name; one of MODELS unless `configs` are given.
        weights, encoder_bits: as `export_bundle` gets them; matrices come packed so, and packed otherwise
            they would only be an approximation of what this checkpoint holds.
        seed: of the weights.
        configs: {transformer, text_encoder, vae, scheduler} -> parsed JSON, for other shapes.

    Raises BadArguments for an unknown model.
    """
    if configs is None and model not in MODELS:
        raise BadArguments(f"--synthetic: expected {' or '.join(MODELS)}, found {model!r}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / f"synthetic {model} (seed {seed})"  # becomes the manifest's `source`
        yield Synthetic(folder, configs or MODELS[model], weights=weights, encoder_bits=encoder_bits, seed=seed)


def _shapes(configs: Configs) -> dict[str, dict[str, tuple[int, ...]]]:
    """component -> name -> shape, from the libraries' own modules, without memory for weights."""
    import torch
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        modules = {
            "transformer": Flux2Transformer2DModel.from_config(configs["transformer"]),
            "text_encoder": Qwen3ForCausalLM(Qwen3Config(**configs["text_encoder"])),
            "vae": AutoencoderKLFlux2.from_config(configs["vae"]),
        }
    # lm_head is the embedding again; checkpoints leave it out.
    return {
        component: {
            name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name != "lm_head.weight"
        }
        for component, module in modules.items()
    }


def _write_tokenizer(folder: Path) -> tuple[Path, list[Path]]:
    """Copy the embedded model's tokenizer with klein's length; returns the folder and its files."""
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (TOKENIZER / name).is_file():
            (folder / name).write_bytes((TOKENIZER / name).read_bytes())
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        raise BadCheckpoint(f"{TOKENIZER}: expected the embedded model's tokenizer, found no {config.name}")
    settings = {**json.loads(config.read_text("utf-8")), "model_max_length": KLEIN_LENGTH}
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder, sorted(folder.iterdir())
