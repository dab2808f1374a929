"""Random-weight pipelines of many shapes, each exported once a test session.

Between them: 1 to 4 heads of 64 or 128, 0 to 3 double and 1 to 4 single blocks, shared and grouped
keys, a last hidden state that has passed the final norm, short and long texts, an autoencoder whose
decoder is narrower than its encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.bundle import export_bundle
from tests.tiny import make_pipeline


@dataclass(frozen=True)
class Configuration:
    """A pipeline's shape, and the picture that the end-to-end test draws with it."""

    shape: dict[str, Any]
    weights: str
    prompt: str
    size: tuple[int, int]
    steps: int = 4
    seed: int = 0
    layers: tuple[int, ...] = (1, 2, 3)
    export: dict[str, Any] = field(default_factory=dict)


CONFIGURATIONS = {
    "one-head": Configuration(
        dict(heads=1, head_dim=128, double=1, single=1, binary=True, text_length=24), "binary", "a red apple", (64, 64)
    ),
    "two-heads-ternary": Configuration(
        dict(heads=2, head_dim=64, double=1, single=2, ternary=True), "ternary", "火箭，蓝色背景", (80, 48), seed=1
    ),
    "no-double": Configuration(
        dict(heads=3, head_dim=128, double=0, single=4, text_heads=4, text_kv_heads=2, text_length=17),
        "ternary",
        "",
        (48, 80),
        seed=123456789,
    ),
    "no-packing": Configuration(
        dict(heads=3, head_dim=64, double=2, single=1, layers=(2, 3, 4), encoder_depth=4),
        "keep",
        "two rockets 🚀🚀",
        (112, 16),
        steps=3,
        seed=7,
        layers=(2, 3, 4),
    ),
    "long-text": Configuration(
        dict(heads=2, head_dim=128, double=1, single=1, text_length=512, binary=True),
        "binary",
        "a castle " * 60,
        (64, 48),
        steps=2,
        seed=2**40 + 5,
    ),
    "deep": Configuration(
        dict(heads=4, head_dim=64, double=3, single=2, decoder_channels=(8, 16, 24, 24), ternary=True),
        "ternary",
        "three strawberries",
        (48, 48),
        steps=1,
        seed=42,
    ),
    "one-token": Configuration(
        dict(heads=2, head_dim=64, double=2, single=3, text_length=1), "binary", "cat", (16, 16), steps=5, seed=3
    ),
}


WEIGHTS = ("binary", "ternary", "keep")


def export(name: str, folder: Path, weights: str | None = None) -> Path:
    """Make the checkpoint and the bundle of a configuration, with its own weights or others; the bundle's path."""
    configuration = CONFIGURATIONS[name]
    weights = weights or configuration.weights
    checkpoint = folder / name
    if not checkpoint.exists():
        make_pipeline(checkpoint, **{"layers": configuration.layers, **configuration.shape})
    bundle = folder / f"{name}-{weights}"
    export_bundle(
        checkpoint, bundle, weights=weights, encoder_bits=16, layers=configuration.layers, **configuration.export
    )
    return bundle
