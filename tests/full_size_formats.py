"""klein-4B-sized checkpoints of every format that export reads, and a check of the bundles made of them; run by hand.

    python -m tests.full_size_formats write FORMAT WEIGHTS FOLDER
    /usr/bin/time -v python build.py export FOLDER --weights WEIGHTS -o BUNDLE
    python -m tests.full_size_formats check BUNDLE [WEIGHTS]

FORMAT is diffusers, mlx, gemlite or gguf, WEIGHTS binary or ternary; `check` wants them where the bundle has others,
as a diffusers folder's may with `--weights keep`. The weights are those of `--synthetic klein-4b`, all 36 layers of
the text encoder among them, with scales that every format holds exactly: codes, scales, offsets and dense values of
a bundle are compared bit for bit. Files are streamed, so writing takes up to 5 GB of memory. A component's folder
that is there already is kept, so that formats can share it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import torch

from exporter.bundle import Bundle
from exporter.graph.store_weights import PACKED
from exporter.modulation import TABLE
from exporter.synthetic import Synthetic, open_synthetic
from tests.full_size_files import SafetensorsWriter, on_disk, original_rows, write_gguf
from tests.gguf_files import Q1_0, Q2_0, GgmlType

# One byte of codes -> the values that they stand for in units of the scale.
LEVELS = {
    "binary": 2 * (np.arange(256)[:, None] >> np.arange(8) & 1) - 1,
    "ternary": (np.arange(256)[:, None] >> np.arange(0, 8, 2) & 3) - 1,
    "int4": (np.arange(256)[:, None] >> np.arange(0, 8, 4) & 15) - 8,
}
# gemlite's metadata: bits, codes per byte and mask in their places (exporter/sources/gemlite.py).
METADATA = {"binary": (0, 1, 128, 1, 8, 1, 1, 0, 0, 0, 4, 1), "ternary": (0, 2, 128, 3, 4, 1, 1, 0, 0, 0, 4, 1)}
COMPONENTS = {"encoder": "text_encoder", "modulation": "transformer", "denoiser": "transformer"}


class Truth:
    """What the checkpoints hold.

    Scales of the transformer have the 8 significant bits of bfloat16. Those of the text encoder have 4, its
    offsets are −8 scales and every group has the codes 0 and 15: its values are bfloat16 numbers whose packing
    gives these very codes back.
    """

    def __init__(self, checkpoint: Synthetic) -> None:
        self.checkpoint = checkpoint

    def codes(self, component: str, name: str) -> tuple[str, np.ndarray, np.ndarray] | None:
        """(kind, u8[N, bytes] codes, f32[N, groups] scales) of a packed matrix; None if it is dense."""
        given = self.checkpoint.given(component, name)
        if given is None:
            return None
        codes, bits = given.parts[".codes"].view(np.uint8), given.parts[".scales"].astype(np.float32).view(np.uint32)
        if given.kind == "int4":
            codes[:, ::32] = 0xF0  # the first two codes of each group of 64
        mask = np.uint32(0xFFF00000 if given.kind == "int4" else 0xFFFF0000)
        return given.kind, codes, (bits & mask).view(np.float32)

    def values(self, component: str, name: str) -> np.ndarray:
        """bfloat16 bits, u16, in the tensor's shape."""
        found = self.codes(component, name)
        if found is None:
            return bf16(self.checkpoint.tensor(component, name))
        kind, codes, scales = found
        levels = LEVELS[kind].astype(np.float32)
        out = np.empty((len(codes), codes.shape[1] * levels.shape[1]), np.uint16)
        for row in range(0, len(out), 256):
            rows = levels[codes[row : row + 256]].reshape(-1, scales.shape[1], out.shape[1] // scales.shape[1])
            out[row : row + 256] = bf16(rows * scales[row : row + 256, :, None]).reshape(-1, out.shape[1])
        return out

    def names(self, component: str) -> list[str]:
        return self.checkpoint.names(component)


def bf16(values: np.ndarray) -> np.ndarray:
    """f32 -> bfloat16 bits, cut off."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def f32(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits -> f32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_dense(truth: Truth, component: str, folder: Path, file: str, parts: int) -> None:
    """bfloat16 values in safetensors, in one file or in several with an index."""
    names, weight_map = truth.names(component), {}
    for part in range(parts):
        stem, _, ending = file.rpartition(".")
        path = folder / (file if parts == 1 else f"{stem}-{part + 1:05}-of-{parts:05}.{ending}")
        with SafetensorsWriter(path, alignment=8) as out:
            for name in names[len(names) * part // parts : len(names) * (part + 1) // parts]:
                out.add(name, "BF16", truth.values(component, name))
                weight_map[name] = path.name
    if parts > 1:
        (folder / f"{file}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_mlx(truth: Truth, component: str, folder: Path, file: str) -> None:
    """Words, scales and biases in safetensors whose data begin at an odd byte."""
    with SafetensorsWriter(folder / file, alignment=1) as out:
        for name in truth.names(component):
            found = truth.codes(component, name)
            if found is None:
                out.add(name, "BF16", truth.values(component, name))
                continue
            kind, codes, scales = found
            base = name.removesuffix(".weight")
            out.add(name, "U32", codes.view("<u4"))
            out.add(f"{base}.scales", "BF16", bf16(scales * (2 if kind == "binary" else 1)))
            out.add(f"{base}.biases", "BF16", bf16(scales * (-8 if kind == "int4" else -1)))


def write_gemlite(truth: Truth, folder: Path) -> None:
    """`state_dict.pt`: bytes, scales and zeros transposed."""
    with on_disk() as keep:
        state: dict[str, torch.Tensor] = {}
        for name in truth.names("transformer"):
            found = truth.codes("transformer", name)
            if found is None:
                state[name] = keep(truth.values("transformer", name)).view(torch.bfloat16)
                continue
            kind, codes, scales = found
            state |= {
                f"{name.removesuffix('weight')}{part}": value
                for part, value in {
                    "W_q": keep(codes.T),
                    "scales": keep(scales.T * np.float32(2 if kind == "binary" else 1)),
                    "zeros": keep(-scales.T),
                    "metadata": torch.tensor(METADATA[kind], dtype=torch.int32),
                    "orig_shape": torch.tensor(truth.checkpoint.shape("transformer", name), dtype=torch.int32),
                }.items()
            }
        torch.save(state, folder / "state_dict.pt")


def write_hqq(truth: Truth, folder: Path) -> None:
    """`qmodel.pt`: linears as nibbles of two halves of the groups, float16 scales and zeros; the rest in bfloat16."""
    settings = {"nbits": 4, "group_size": 64, "axis": 1, "packing": "4bit_u8", "view_as_float": False}
    with on_disk() as keep:
        modules: dict[str, dict] = {}
        for name in truth.names("text_encoder"):
            module = name.removesuffix(".weight")
            found = None if "embed_tokens" in name else truth.codes("text_encoder", name)
            if found is None:
                modules[module] = {"weight": keep(truth.values("text_encoder", name)).view(torch.bfloat16)}
                continue
            _, codes, scales = found
            groups = np.stack([codes & 15, codes >> 4], axis=-1).reshape(2, -1, 64)
            halves = scales.reshape(-1, 1).astype(np.float16)
            modules[module] = {
                "W_q": keep(groups[0] << 4 | groups[1]),
                "scale": keep(halves),
                "zero": keep(np.full_like(halves, 8)),
                "shape": truth.checkpoint.shape("text_encoder", name),
                **settings,
            }
        torch.save(modules, folder / "qmodel.pt")


def write_gguf_component(truth: Truth, component: str, folder: Path, low_bit: int, rest: GgmlType) -> None:
    """The original release's names, q, k and v fused; blocks in `low_bit`, vectors in F32, all else in `rest`."""
    shapes = {name: truth.checkpoint.shape(component, name) for name in truth.names(component)}
    if component == "transformer":
        pieces, arch = original_rows(), "flux"
    else:
        stems = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 36)
        found = {stems.get_name(name, try_suffixes=(".weight",)): name for name in shapes}
        pieces, arch = {stem: [(name, 0, shapes[name][0])] for stem, name in found.items()}, "qwen3"

    def layout(stem: str) -> tuple[tuple[int, ...], int]:
        name = pieces[stem][0][0]
        if len(shapes[name]) == 1:
            return shapes[name], GgmlType.F32
        kind = low_bit if PACKED.match(name) else rest
        return (sum(stop - start for _, start, stop in pieces[stem]), shapes[name][1]), kind

    def tensor(stem: str) -> np.ndarray:
        kind = layout(stem)[1]
        parts = [_gguf_rows(truth, component, name, kind)[start:stop] for name, start, stop in pieces[stem]]
        return np.concatenate(parts)

    write_gguf(folder / "model.gguf", arch, {stem: layout(stem) for stem in pieces}, tensor)


def _gguf_rows(truth: Truth, component: str, name: str, kind: int) -> np.ndarray:
    """The rows of a tensor as they lie in the file."""
    if kind in (Q1_0, Q2_0):
        _, codes, scales = truth.codes(component, name)
        # Blocks of 128 for one bit and of 64 for two: a float16 scale and 16 bytes of codes either way.
        scales = np.repeat(scales.astype("<f2"), 1 if kind == Q1_0 else 2, axis=1)
        blocks = [scales[..., None].view(np.uint8), codes.reshape(len(codes), -1, 16)]
        return np.concatenate(blocks, axis=2).reshape(len(codes), -1)
    bits = truth.values(component, name)
    return bits if kind == GgmlType.BF16 else f32(bits).astype(np.float32 if kind == GgmlType.F32 else np.float16)


def writers(truth: Truth, form: str, weights: str) -> dict[str, Callable[[Path], None]]:
    """Folder -> what writes its weights."""
    file, encoder_file = "diffusion_pytorch_model.safetensors", "model.safetensors"
    kinds = (Q1_0, GgmlType.F16) if weights == "binary" else (Q2_0, GgmlType.BF16)
    return {
        "diffusers": {
            "transformer": lambda folder: write_dense(truth, "transformer", folder, file, 2),
            "text_encoder": lambda folder: write_dense(truth, "text_encoder", folder, encoder_file, 2),
        },
        "mlx": {
            "transformer-packed-mflux": lambda folder: write_mlx(truth, "transformer", folder, file),
            "text_encoder-mlx-4bit": lambda folder: write_mlx(truth, "text_encoder", folder, encoder_file),
        },
        "gemlite": {
            "transformer-gemlite": lambda folder: write_gemlite(truth, folder),
            "text_encoder-hqq-4bit": lambda folder: write_hqq(truth, folder),
        },
        "gguf": {
            "transformer": lambda folder: write_gguf_component(truth, "transformer", folder, *kinds),
            "text_encoder": lambda folder: write_gguf_component(truth, "text_encoder", folder, *kinds),
        },
    }[form] | {"vae": lambda folder: write_dense(truth, "vae", folder, file, 1)}


def write(form: str, weights: str, folder: Path) -> None:
    """Write a checkpoint."""
    with truths(weights) as truth:
        for name, write_component in writers(truth, form, weights).items():
            place = folder / name
            if place.exists():
                continue
            place.mkdir(parents=True)
            (place / "config.json").write_text(json.dumps(truth.checkpoint.configs[name.split("-")[0]]))
            write_component(place)
        (folder / "tokenizer").mkdir(exist_ok=True)
        for file in truth.checkpoint.tokenizer_files:
            (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))


def check(path: Path, weights: str | None) -> str:
    """Compare what a bundle holds of transformer and text encoder with the truth.

    Returns counts by kind; ends with a line if something differs. `weights`: None for the bundle's own.
    """
    bundle = Bundle(path)
    counts: dict[str, int] = {}
    wrong = []
    with truths(weights or bundle.manifest["weights"]) as truth:
        for part, component in COMPONENTS.items():
            stored = {name.removesuffix(".trits").removesuffix(".codes") for name in bundle.tensors(part)} - {TABLE}
            for name in sorted(name for name in stored if not name.endswith((".scales", ".offsets"))):
                source = name if component == "transformer" else f"model.{name}"
                kind, expected = _expected(truth, component, source, dense=name in bundle.tensors(part))
                counts[kind] = counts.get(kind, 0) + 1
                for suffix, array in expected.items():
                    found = bundle.tensor(part, name + suffix)
                    if not np.array_equal(found, array.astype(found.dtype)):
                        wrong.append(name + suffix)
    if wrong:
        raise SystemExit(f"{path}: {len(wrong)} parts differ, among them {', '.join(wrong[:5])}")
    return f"{path}: identical: {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}"


def _expected(truth: Truth, component: str, source: str, dense: bool) -> tuple[str, dict[str, np.ndarray]]:
    """(kind, suffix -> part) of a tensor; dense parts as f32, to be rounded as the bundle has them."""
    packed = None if dense else truth.codes(component, source)
    if packed is None:
        return "dense", {"": f32(truth.values(component, source))}
    kind, codes, scales = packed
    parts = {".codes": codes.view("<u4"), ".scales": scales}
    return kind, parts | ({".offsets": -8 * scales} if kind == "int4" else {})


@contextmanager
def truths(weights: str) -> Iterator[Truth]:
    with open_synthetic("klein-4b", weights=weights) as checkpoint:
        yield Truth(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    writing, checking = verbs.add_parser("write"), verbs.add_parser("check")
    writing.add_argument("format", choices=("diffusers", "mlx", "gemlite", "gguf"))
    checking.add_argument("bundle", type=Path)
    writing.add_argument("weights", choices=("binary", "ternary"))
    checking.add_argument("weights", choices=("binary", "ternary"), nargs="?")
    writing.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "check":
        print(check(arguments.bundle, arguments.weights))
    else:
        write(arguments.format, arguments.weights, arguments.folder)


if __name__ == "__main__":
    main()
