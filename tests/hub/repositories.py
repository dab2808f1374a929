"""Contents of repositories, and what tests look at in a folder."""

from __future__ import annotations

import json
from pathlib import Path

WEIGHTS = b"weights " * 20_000
TOKENIZER = ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "tokenizer/chat_template.jinja"]
SPLIT = ["text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors"]
INDEX = json.dumps({"weight_map": {f"t{i}": name.split("/")[1] for i, name in enumerate(SPLIT * 2)}}).encode()
SMALL = [
    *("model_index.json", "README.md", "LICENSE.md", "NOTICE", "scheduler/scheduler_config.json", *TOKENIZER),
    *("text_encoder/config.json", "transformer/config.json", "vae/config.json"),
]
KLEIN = {
    **{name: name.encode() for name in SMALL},
    "text_encoder/model.safetensors.index.json": INDEX,
    **{name: name.encode() + WEIGHTS for name in SPLIT},
    "transformer/diffusion_pytorch_model.safetensors": b"transformer " + WEIGHTS,
    "vae/diffusion_pytorch_model.safetensors": b"vae " + WEIGHTS,
}


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing_partial(cache: Path) -> bool:
    return not [path for path in cache.rglob("*") if "incomplete" in path.name]
