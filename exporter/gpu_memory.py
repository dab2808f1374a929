"""GPU bytes that pictures need, phase by phase: counted as the runtime counts them (site/js/runtime/model.js)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from exporter.lower.memory import ALIGNMENT
from exporter.lower.plan_bytes import PADDING, plan_bytes, round_up
from exporter.manifest import Manifest, first_download
from exporter.shards import DTYPES

KEEP_ALL_BYTES = 256_000_000  # of shards; above it the encoder's weights are only there while it works
BUFFER_BYTES = 256 * 2**20  # weights are placed in buffers of at most so many bytes

PHASES = {"encode": "encoder", "denoise": "denoiser", "decode": "decoder"}


def weight_bytes(component: Mapping[str, Any]) -> int:
    """Bytes of the buffers that hold a component's tensors (`placeTensors` in site/js/runtime/weights.js).

    Args:
        component: a component of a manifest.
    """
    buffers: list[int] = []
    for _, record in sorted(component["tensors"].items()):  # as the site's manifest lists them
        size = round_up(max(resident_bytes(record), PADDING), PADDING)
        offset = round_up(buffers[-1], ALIGNMENT) if buffers else 0
        if buffers and offset + size <= BUFFER_BYTES:
            buffers[-1] = offset + size
        else:
            buffers.append(size)
    return sum(buffers)


def resident_bytes(record: Mapping[str, Any]) -> int:
    """Bytes of a stored tensor on the GPU, where trits are codes."""
    codes = record.get("expands_to")
    return 4 * math.prod(codes["shape"]) if codes else math.prod(record["shape"]) * DTYPES[record["dtype"]].itemsize


def phase_bytes(manifest: Manifest, plans: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, int]]:
    """The manifest's `memory`: the most bytes at once in each phase, at every size that the page offers.

    Weights are those that the runtime keeps without a budget, on a device that binds every tensor whole; the
    text has its greatest length.

    Args:
        plans: of the components, by name.

    Returns:
        {"512x512": {"encode": bytes, "denoise": bytes, "decode": bytes}, …}
    """
    components = manifest["components"]
    weights = {name: weight_bytes(components[name]) for name in PHASES.values()}
    keeps_encoder = first_download(manifest) <= KEEP_ALL_BYTES
    later = sum(weights.values()) - (0 if keeps_encoder else weights["encoder"])
    resident = {"encode": sum(weights.values()), "denoise": later, "decode": later}
    found = {}
    for width, height in manifest["sizes"]["presets"]:
        rows, columns = (side // manifest["latents"]["downscale"] for side in (height, width))
        symbols = {
            "text_tokens": manifest["text"]["length"],
            "image_tokens": rows * columns,
            "rows": rows,
            "columns": columns,
        }
        found[f"{width}x{height}"] = {
            phase: resident[phase] + plan_bytes(plans[component], symbols)["total"]
            for phase, component in PHASES.items()
        }
    return found
