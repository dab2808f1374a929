"""Bundles: the folder that `export` writes and that sites, tests and other tools open."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter import manifest as manifests
from exporter.checkpoint import CONFIG_FILES, Checkpoint
from exporter.configs import choose_layers, downscale, picture_sizes
from exporter.errors import BadArguments, BadBundle
from exporter.jsonfile import read_json
from exporter.modulation import write_table
from exporter.output import new_folder
from exporter.shards import LIMIT, ShardReader, ShardWriter
from exporter.storage import Stored, StoredTensor
from exporter.trits import unpack_trits

if TYPE_CHECKING:
    from exporter.graph import ComponentGraph

# Bundle's component -> folder of the checkpoint
SOURCES = {"encoder": "text_encoder", "modulation": "transformer", "denoiser": "transformer", "decoder": "vae"}
STEPS = 4  # that step-distilled checkpoints are made for; the page's default

Progress = Callable[[str, int, int], None]  # (what, values done, values in all)


@dataclass
class Exported:
    """What `export_bundle` made: the folder, its shard bytes, and lines worth telling the user."""

    folder: Path
    bytes: int
    notes: list[str] = field(default_factory=list)


def export_bundle(
    checkpoint: str | Path | Checkpoint,
    out: str | Path,
    *,
    weights: str,
    encoder_bits: int = 4,
    layers: tuple[int, ...] | None = None,
    shard_limit: int = LIMIT,
    progress: Progress = lambda what, done, total: None,
    source: str | None = None,
    commit: str | None = None,
    small_decoder: Path | None = None,
) -> Exported:
    """Write the bundle of a diffusers folder or a pack.

    Args:
        checkpoint: folder of a `Flux2KleinPipeline`, or an opened one.
        out: folder to write; an existing bundle is replaced, any other folder with content refused.
            Its name, without a trailing `-WEIGHTS`, is the bundle's name; that of its parent
            if it is called WEIGHTS.
        weights: binary or ternary packs the linears of the transformer's blocks, keep packs nothing.
        encoder_bits: 4 or 8 (affine, packed) or 16 for the text encoder.
        layers: hidden states of the text encoder to stack; klein's 9, 18, 27 if None.
        shard_limit: bytes of a shard at most.
        progress: called with ("graphs", 0, total), then with tensor names and values stored so far.
        source, commit: id and commit of the checkpoint on the Hub; the folder tells its source if None.
        small_decoder: folder of another VAE, whose decoder takes the place of the checkpoint's.

    Raises BadArguments or BadCheckpoint; then `out` is as it was, and nothing else is left behind.
    """
    if weights not in manifests.WEIGHTS:
        raise BadArguments(f"--weights: expected binary, ternary or keep, found {weights!r}")
    if encoder_bits not in (4, 8, 16):
        raise BadArguments(f"--encoder-bits: expected 4, 8 or 16, found {encoder_bits!r}")
    from exporter.graph import export_graphs
    from exporter.prompt import text_settings
    from exporter.small_decoder import take_decoder

    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    decoder_source = take_decoder(opened, Path(small_decoder)) if small_decoder else None
    layers = choose_layers(opened.configs, layers)
    text = text_settings(opened, layers)
    with new_folder(Path(out)) as folder:
        progress("graphs", 0, 1)
        graphs = export_graphs(opened.configs, weights=weights, encoder_bits=encoder_bits, encoder_layers=layers)
        for component, graph in graphs.items():
            for tensor in graph.tensors:
                opened.require(SOURCES[component], tensor.source, tensor.shape)
        # The first matrix already tells a wrong --weights, before the text encoder is stored.
        first = next((tensor for tensor in graphs["denoiser"].tensors if tensor.packed), None)
        if first is not None:
            _take(opened, "denoiser", first)
        writer = ShardWriter(folder, shard_limit)
        components, notes = _write_components(opened, graphs, folder, writer, progress)
        _copy_files(opened, folder)
        place = Path(out).resolve()
        name = place.parent.name if place.name == weights else place.name.removesuffix(f"-{weights}")
        manifest = {
            "format": manifests.FORMAT,
            "name": re.sub(r"[^A-Za-z0-9._-]+", "-", name) or "model",
            "variant": weights,
            "weights": weights,
            "source": source or _source(opened),
            **({"commit": commit} if commit else {}),
            **({"decoder_source": decoder_source} if decoder_source else {}),
            "license": _license(opened),
            "components": components,
            "shards": writer.shards,
            "text": text,
            "latents": {
                "channels": opened.configs["transformer"]["in_channels"],
                "downscale": downscale(opened.configs),
            },
            "denoiser": _denoiser_settings(opened.configs["transformer"]),
            "schedule": {**opened.configs["scheduler"], "steps": STEPS},
            "sizes": picture_sizes(opened.configs),
        }
        manifest["modulation"] = write_table(folder, manifest, writer)
        manifests.check(manifest, "manifest")
        manifests.dump(manifest, folder)
    return Exported(Path(out), sum(shard["bytes"] for shard in writer.shards), notes)


def _write_components(
    opened: Checkpoint,
    graphs: dict[str, ComponentGraph],
    folder: Path,
    writer: ShardWriter,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """Store all tensors, one at a time, then link and save the graphs."""
    from exporter.link import link, save

    total = sum(int(np.prod(tensor.shape)) for graph in graphs.values() for tensor in graph.tensors)
    done = 0
    components: dict[str, Any] = {}
    notes: list[str] = []
    for component, graph in graphs.items():
        records: dict[str, Any] = {}
        errors: dict[str, dict[str, float]] = {}
        for tensor in graph.tensors:
            stored = _take(opened, component, tensor) if tensor.packed else None
            stored = stored or tensor.store(opened.tensor(SOURCES[component], tensor.source))
            for name, part in stored.parts.items():
                records[name] = writer.add(name, part)
            for name, codes in tensor.expansions().items():
                records[name]["expands_to"] = codes
            if tensor.packed:
                errors.setdefault(tensor.kind, {})[tensor.source] = 0.0 if stored.lossless else stored.relative_error
            done += int(np.prod(tensor.shape))
            progress(f"{component} {tensor.name}", done, total)
        writer.finish_shard()
        link(graph.model, records, writer.shards)
        save(graph.model, folder / f"{component}.onnx")
        components[component] = {
            "graph": f"{component}.onnx",
            "plan": f"{component}.plan.json",
            "tensors": records,
        }
        notes += [f"{component}: {note}" for note in graph.notes]
        notes += [f"{component}: {_packing_note(kind, found)}" for kind, found in errors.items()]
    return components, notes


def _take(opened: Checkpoint, component: str, tensor: StoredTensor) -> Stored | None:
    """A matrix that the checkpoint holds packed as the graph wants it; None if it must be packed anew.

    Raises BadArguments where one is binary and the other ternary.
    """
    source = SOURCES[component]
    given = opened.given(source, tensor.source)
    low_bit = ("binary", "ternary")
    if given is not None and given.kind in low_bit and tensor.kind in low_bit and given.kind != tensor.kind:
        raise BadArguments(
            f"--weights: expected {given.kind}, as {opened.label(source, tensor.source)} holds {tensor.source},"
            f" found {tensor.kind}"
        )
    return tensor.take(given)


def _packing_note(kind: str, errors: dict[str, float]) -> str:
    lossy = {name: error for name, error in errors.items() if error > 0}
    if not lossy:
        return f"{len(errors)} matrices packed as {kind} without loss"
    worst = max(lossy, key=lambda name: lossy[name])
    return (
        f"{len(errors)} matrices packed as {kind}, {len(errors) - len(lossy)} of them without loss;"
        f" largest relative error {lossy[worst]:.2g} in {worst}"
    )


def _copy_files(opened: Checkpoint, folder: Path) -> None:
    """Tokenizer, configs and licence texts of the checkpoint, where a diffusers folder has them."""
    (folder / "tokenizer").mkdir()
    for file in opened.tokenizer_files:
        shutil.copyfile(file, folder / "tokenizer" / file.name)
    if not (folder / "tokenizer" / "tokenizer.json").exists():
        from exporter.prompt import open_tokenizer

        # The browser reads tokenizer.json alone; older folders have vocab.json and merges.txt.
        tokenizer = open_tokenizer(opened.tokenizer_folder)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    configs = {file: opened.configs[component] for component, file in CONFIG_FILES.items()}
    for file, config in {"model_index.json": opened.index, **configs}.items():
        target = folder / "configs" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in opened.license_files:
        shutil.copyfile(file, folder / file.name)
    for file in opened.decoder_license_files:
        shutil.copyfile(file, folder / f"{file.stem}-decoder{file.suffix}")


def _denoiser_settings(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "rotary": {"axes": config["axes_dims_rope"], "theta": config.get("rope_theta", 2000)},
        "timestep_features": config["timestep_guidance_channels"],
    }


def _source(opened: Checkpoint) -> str:
    """The Hub id that the pipeline was saved from, else the name of its folder; never a local path."""
    origin = opened.index.get("_name_or_path")
    if isinstance(origin, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", origin):
        return origin
    return opened.path.resolve().name


def _license(opened: Checkpoint) -> str:
    """`license` of the model card's front matter, or nothing."""
    card = opened.path / "README.md"
    if not card.is_file():
        return ""
    front = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""


class Bundle:
    """An exported bundle, opened for reading.

    manifest   checked JSON of manifest.json
    path       of the folder

    Opening checks the manifest and that graphs, configs and tokenizer are there; shards are checked
    when they are first read, or all by `verify`. Raises BadBundle.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = manifests.load(self.path)
        self._shards = ShardReader(self.path, self.manifest["shards"])
        tokenizer = f"{self.manifest['text']['tokenizer']}/tokenizer.json"
        graphs = [component["graph"] for component in self.manifest["components"].values()]
        for file in (*graphs, tokenizer, *(f"configs/{file}" for file in CONFIG_FILES.values())):
            if not (self.path / file).is_file():
                raise BadBundle(f"{self.path}: expected {file}, found no such file")

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """The checkpoint's configs: {transformer, text_encoder, vae, scheduler} -> parsed JSON."""
        return {name: read_json(self.path / "configs" / file, f"configs/{file}") for name, file in CONFIG_FILES.items()}

    def graph(self, component: str) -> Path:
        """Path of a component's ONNX file."""
        return self.path / self.manifest["components"][component]["graph"]

    def tensors(self, component: str) -> dict[str, dict[str, Any]]:
        """Part name -> {"dtype", "shape", "parts"} of a component."""
        return self.manifest["components"][component]["tensors"]

    def tensor(self, component: str, part_name: str) -> np.ndarray:
        """Read one stored part (u32, f16, f32, or u8 trits), or the u32 codes that trits expand to.

        The shards it lies in are hashed at first use.
        """
        tensors = self.tensors(component)
        if part_name in tensors:
            return self._shards.read(part_name, tensors[part_name])
        for name, record in tensors.items():
            if record.get("expands_to", {}).get("name") == part_name:
                return unpack_trits(self._shards.read(name, record), record["expands_to"]["shape"])
        raise BadBundle(f"{self.path}: expected tensor {part_name} in {component}, found none")

    def verify(self) -> None:
        """Check size and SHA-256 of every shard, and that trits are trits."""
        self._shards.check_all()
        for component in self.manifest["components"].values():
            for name, record in component["tensors"].items():
                if "expands_to" in record:
                    self._shards.read(name, record)
