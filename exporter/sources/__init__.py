"""Readers of checkpoint files, one module a kind; every reader is a `Source` (source.py)."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import BadCheckpoint
from exporter.sources.source import Source

# Names that diffusers and transformers give a component's weights; `.index.json` after it if there are several files.
WEIGHT_FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
GEMLITE_FILE, HQQ_FILE = "state_dict.pt", "qmodel.pt"


def open_component(folder: Path, component: str) -> Source:
    """Open the weights in a component's folder as what its files are, whatever the folder is called.

    Messages call files by their folder and name. Raises BadCheckpoint if there are no weights, weights
    of several kinds, or damaged ones.
    """
    single = WEIGHT_FILES[component]
    stored = [name for name in (f"{single}.index.json", single) if (folder / name).is_file()][:1]
    stored += [name for name in (GEMLITE_FILE, HQQ_FILE) if (folder / name).is_file()]
    stored += sorted(file.name for file in folder.glob("*.gguf"))
    if not stored:
        raise BadCheckpoint(
            f"{folder.name}: expected {single} or its .index.json, {GEMLITE_FILE}, {HQQ_FILE} or a .gguf file,"
            " found none of them"
        )
    if len(stored) > 1:
        raise BadCheckpoint(f"{folder.name}: expected weights of one kind, found {' and '.join(stored)}")
    path, label = folder / stored[0], f"{folder.name}/{stored[0]}"
    # Each reader is imported when it is needed: some need a package that the others do not.
    if path.name == GEMLITE_FILE:
        from exporter.sources.gemlite import open_gemlite

        return open_gemlite(path, label)
    if path.name == HQQ_FILE:
        from exporter.sources.hqq import open_hqq

        return open_hqq(path, label)
    if path.suffix == ".gguf":
        from exporter.sources.gguf_file import open_gguf

        return open_gguf(path, label)
    from exporter.sources.mlx import MlxPack, has_packed_words
    from exporter.sources.safetensors_files import SafetensorsFiles

    files = SafetensorsFiles(folder, single)
    return MlxPack(files, folder, component) if has_packed_words(files) else files
