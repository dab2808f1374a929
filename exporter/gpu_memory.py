"""GPU bytes that pictures need, phase by phase: counted as the runtime counts them (site/js/runtime/model.js)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from exporter.expressions import evaluate
from exporter.lower.bands import free_symbols, unrolled
from exporter.lower.memory import ALIGNMENT
from exporter.lower.plan_bytes import ITEM_BYTES, PADDING, plan_bytes, round_up
from exporter.manifest import Manifest, first_download
from exporter.shards import DTYPES
from webgpu_kernels import get
from webgpu_kernels.operands import SEGMENT, TILE, operand_sizes

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
    return {
        size: {
            phase: resident[phase] + plan_bytes(plans[component], symbols)["total"]
            for phase, component in PHASES.items()
        }
        for size, symbols in _preset_symbols(manifest).items()
    }


def _preset_symbols(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Free symbols of plans by size ("512x512"), with the longest text."""
    found = {}
    for width, height in manifest["sizes"]["presets"]:
        rows, columns = (side // manifest["latents"]["downscale"] for side in (height, width))
        symbols = {"rows": rows, "columns": columns, "image_tokens": rows * columns}
        found[f"{width}x{height}"] = {**symbols, "text_tokens": manifest["text"]["length"]}
    return found


def converted_bytes(manifest: Manifest, denoiser: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifest's `converted`: what denoising takes beyond `memory` where variants run that convert operands.

    Scratch is counted as in site/js/runtime/conversions.js, for variants that a page may choose by itself; only the
    denoiser has any.

    Args:
        denoiser: its plan.

    Returns:
        [{"needs": [names of features], "bytes": {"512x512": bytes, …}}, …], one for each set of needs.
    """
    found = {needs for dispatch in denoiser["dispatches"] for _, needs in _converting(dispatch)}
    sizes = _preset_symbols(manifest)
    return [
        {
            "needs": list(needs),
            "bytes": {size: _scratch_bytes(denoiser, needs, symbols) for size, symbols in sizes.items()},
        }
        for needs in sorted(found)
    ]


def _converting(dispatch: Mapping[str, Any]) -> list[tuple[dict[str, str], tuple[str, ...]]]:
    """What variants of a dispatch convert, operand types by binding, and the features that these need."""
    kernel = get(dispatch["kernel"])
    options = kernel.complete(dispatch["options"])
    return [
        (dict(variant.converts), tuple(sorted({*variant.features, *variant.language_features})))
        for variant in kernel.variants
        if variant.converts and variant.default and variant.serves(options) and variant.fits(dispatch["constants"])
    ]


def _scratch_bytes(plan: Mapping[str, Any], needs: tuple[str, ...], symbols: Mapping[str, int]) -> int:
    words: dict[str, int] = {}
    scales: dict[str, int] = {}
    count = 0
    for dispatch, here in unrolled(plan, {**free_symbols(), **symbols}):
        for converts in (converts for converts, needed in _converting(dispatch) if needed == needs):
            for binding, kind in converts.items():
                wanted = _converted_operand(binding, kind, dispatch, here)
                words[binding] = max(words.get(binding, 0), wanted[0])
                scales[binding] = max(scales.get(binding, 0), wanted[1])
                count += 1
    slot = round_up(ITEM_BYTES * max(len(dispatch["uniforms"]) for dispatch in plan["dispatches"]), ALIGNMENT)
    return sum(round_up(words[name], ALIGNMENT) + scales[name] for name in words) + slot * count


def _converted_operand(
    binding: str, kind: str, dispatch: Mapping[str, Any], symbols: Mapping[str, int]
) -> tuple[int, int]:
    """Bytes of an operand's words and of its scales (`convertedBytes` in site/js/runtime/conversions.js)."""
    uniforms, constants = dispatch["uniforms"], dispatch["constants"]
    if "_heads" in kind:
        counted, heads, columns = operand_sizes(binding, uniforms, constants)
    else:
        counted, heads, columns = uniforms["rows"], 1, constants["K"]
    rows = evaluate(counted, symbols)
    tiles = {"f16_heads_turned": 8, "int8_tiles": TILE, "int8_heads": TILE, "int8_heads_turned": TILE}
    filled = round_up(rows, tiles.get(kind, 1))
    words = filled * heads * columns * (2 if kind.startswith("f16") else 1)
    scales = {
        "int8": rows * columns // SEGMENT * 2,
        "int8_rows": rows * 2,
        "int8_tiles": filled,
        "int8_heads": filled * heads,
        "int8_heads_turned": filled // TILE * heads * columns * 2,
    }
    return round_up(words, PADDING), round_up(scales.get(kind, 0) * ITEM_BYTES, PADDING)
