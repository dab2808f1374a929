"""The table of modulations: what the denoiser takes of the time at each step of the schedules that are shipped.

All of it depends on the time alone, and the shipped schedules have few step times. So the table stands for
the component `modulation`, whose weights a page fetches only for other steps or sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import BadCheckpoint
from exporter.schedule import shipped_sigmas, timestep_features
from exporter.shards import ShardWriter

TABLE = "modulation.table"


def write_table(folder: Path, manifest: dict[str, Any], writer: ShardWriter) -> dict[str, Any]:
    """Evaluate the table and add it to the denoiser's tensors, in a shard of its own.

    Args:
        folder: of the bundle, with `modulation`'s graph and shards in place.
        manifest: everything but the key `modulation`.

    Returns:
        that key's value: the sigmas of the table's rows, its name, and the length of a row.

    Raises BadCheckpoint if a value is not finite.
    """
    schedule, downscale = manifest["schedule"], manifest["latents"]["downscale"]
    tokens = [width // downscale * (height // downscale) for width, height in manifest["sizes"]["presets"]]
    sigmas = shipped_sigmas(schedule, tokens)
    count = manifest["denoiser"]["timestep_features"]
    table = evaluate(
        folder / manifest["components"]["modulation"]["graph"],
        [timestep_features(sigma, schedule, count) for sigma in sigmas],
    )
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise BadCheckpoint(f"{TABLE}: expected finite modulations, found others at sigma {sigmas[row]:g}")
    manifest["components"]["denoiser"]["tensors"][TABLE] = writer.add(TABLE, table)
    writer.finish_shard()
    return {"sigmas": sigmas, "table": TABLE, "width": table.shape[1]}


def evaluate(graph: Path, features: list[np.ndarray]) -> np.ndarray:
    """Run the component `modulation` in float32.

    Args:
        graph: its ONNX file, in the bundle.
        features: f32[1, count] of each row.

    Returns:
        f32[rows, width]
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order, whatever the machine
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"timestep_features": row})[0] for row in features])
