"""Another VAE's decoder in place of the checkpoint's, such as FLUX.2-small-decoder's.

It must decode the same latents: as many channels, packed and scaled down alike, and normalised with the same
statistics; how wide its layers are is its own affair.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint import Checkpoint
from exporter.configs import check_configs, downscale
from exporter.errors import BadCheckpoint
from exporter.jsonfile import read_json
from exporter.sources import open_component
from exporter.sources.source import Source

# Statistics saved as bfloat16 in one folder and float32 in the other differ by half a percent at most.
TOLERANCE = 0.01


def take_decoder(opened: Checkpoint, path: Path) -> str:
    """Give an opened checkpoint the VAE of another diffusers folder.

    Args:
        opened: keeps everything else, also the sizes of pictures that it is made for.
        path: folder of a VAE, or of a pipeline with one in `vae/`.

    Returns:
        what the manifest's `decoder_source` says: the id on the Hub, if its config has one, or the folder's name.

    Raises BadCheckpoint if there is none, or one for other latents.
    """
    folder = path if (path / "config.json").is_file() else path / "vae"
    if not folder.is_dir():
        raise BadCheckpoint(f"--small-decoder: expected the folder of a VAE, found none at {path}")
    config = read_json(folder / "config.json", f"{folder.name}/config.json")
    config["sample_size"] = opened.configs["vae"].get("sample_size", 1024)
    configs = {**opened.configs, "vae": config}
    try:
        check_configs(configs)
        _check_same(opened.configs["vae"], config)
        source = open_component(folder, "vae")
        for name in ("bn.running_mean", "bn.running_var"):
            if name not in source.names():
                raise BadCheckpoint(f"expected tensor {name}, found none")
        _check_statistics(opened, source)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"--small-decoder {path}: {error}") from None
    opened.replace_vae(folder, config, source)
    origin = config.get("_name_or_path")
    return origin if isinstance(origin, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", origin) else path.resolve().name


def _check_same(own: dict[str, Any], other: dict[str, Any]) -> None:
    factors = [downscale({"vae": config}) for config in (own, other)]
    if factors[0] != factors[1]:
        raise BadCheckpoint(f"expected a VAE that scales down by {factors[0]} with its patches, found {factors[1]}")
    for key, missing in (("latent_channels", None), ("patch_size", [2, 2]), ("batch_norm_eps", 1e-4)):
        expected, found = own.get(key, missing), other.get(key, missing)
        if expected != found:
            raise BadCheckpoint(f"expected {key} {expected} as in the checkpoint's VAE, found {found}")


def _check_statistics(opened: Checkpoint, source: Source) -> None:
    """The latents' means and variances must be the checkpoint's own."""
    mean, variance = (opened.tensor("vae", f"bn.running_{name}") for name in ("mean", "var"))
    other_mean, other_variance = (source.tensor(f"bn.running_{name}") for name in ("mean", "var"))
    if other_mean.shape != mean.shape or other_variance.shape != variance.shape:
        raise BadCheckpoint(f"expected statistics of {mean.size} packed channels, found {other_mean.size}")
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    off = np.maximum(
        np.abs(other_mean - mean) / deviation, np.abs(np.sqrt(np.maximum(other_variance, 0)) / deviation - 1)
    )
    worst = int(np.argmax(off))
    if not off[worst] <= TOLERANCE:
        raise BadCheckpoint(
            f"expected the latents' statistics of the checkpoint's VAE, found others: channel {worst} has"
            f" mean {other_mean[worst]:g} and variance {other_variance[worst]:g},"
            f" not {mean[worst]:g} and {variance[worst]:g}"
        )
