"""Checkpoint configs -> one ONNX graph a component, without weights (DESIGN.md §3).

The only stage that needs torch, diffusers and transformers; it never touches a weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from exporter.storage import BATCH_NORM_STD, StoredTensor


@dataclass(slots=True)
class ComponentGraph:
    """A component's ONNX model without data, the tensors it is made of, and what was kept dense."""

    model: ir.Model
    tensors: list[StoredTensor]
    notes: list[str] = field(default_factory=list)


def export_graphs(
    configs: dict[str, dict[str, Any]],
    *,
    weights: str,
    encoder_bits: int = 4,
    encoder_layers: tuple[int, ...] = (9, 18, 27),
) -> dict[str, ComponentGraph]:
    """Export encoder, modulation, denoiser and decoder.

    Args:
        configs: parsed `config.json` of `text_encoder`, `transformer` and `vae`.
        weights: `binary`, `ternary` or `keep`, for the linears of the denoiser's blocks.
        encoder_bits: 4, 8 or 16.
        encoder_layers: hidden states that are stacked into the text features.

    Raises:
        BadCheckpoint: a configuration that the graphs cannot express.
    """
    import torch

    from exporter.graph.decoder import Decoder
    from exporter.graph.denoiser import Denoiser
    from exporter.graph.encoder import Encoder
    from exporter.graph.onnx_export import export_module
    from exporter.graph.split_modulation import split_modulation
    from exporter.graph.store_weights import denoiser_kind, dense_kind, encoder_kind, store_weights

    graphs = {}
    with torch.device("meta"):
        notes: list[str] = []
        model = export_module(Encoder(configs["text_encoder"], tuple(encoder_layers)), ("model.",))
        tensors = store_weights(model, encoder_kind(encoder_bits, notes), lambda name: (f"model.{name}", None, 0.0))
        graphs["encoder"] = ComponentGraph(model, tensors, notes)

        notes = []
        model = export_module(Denoiser(configs["transformer"]), ("model.",))
        tensors = store_weights(model, denoiser_kind(weights, notes), lambda name: (name, None, 0.0))
        modulation, model = split_modulation(model)
        graphs["modulation"] = ComponentGraph(modulation, _tensors_of(modulation, tensors))
        graphs["denoiser"] = ComponentGraph(model, _tensors_of(model, tensors), notes)

        epsilon = configs["vae"].get("batch_norm_eps", 1e-4)
        model = export_module(Decoder(configs["vae"]), ())
        tensors = store_weights(model, dense_kind, lambda name: _decoder_source(name, epsilon))
        graphs["decoder"] = ComponentGraph(model, tensors)
    return graphs


def _tensors_of(model: ir.Model, tensors: list[StoredTensor]) -> list[StoredTensor]:
    """Those of the tensors that a graph takes."""
    return [tensor for tensor in tensors if tensor.parts()[0][0] in model.graph.initializers]


def _decoder_source(name: str, epsilon: float) -> tuple[str, str | None, float]:
    if name == "bn.std":
        return "bn.running_var", BATCH_NORM_STD, epsilon
    return name, None, 0.0
