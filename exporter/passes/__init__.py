"""Passes that turn an exported graph into one the lowering knows; order matters, it is listed here."""

from __future__ import annotations

import onnx_ir as ir

from exporter.passes.fuse_activations import fuse_activations
from exporter.passes.fuse_conv import fuse_conv
from exporter.passes.fuse_latents_unpack import fuse_latents_unpack
from exporter.passes.fuse_linear import fuse_linear
from exporter.passes.fuse_modulation import fuse_modulation
from exporter.passes.fuse_norm_rotary import fuse_norm_rotary
from exporter.passes.fuse_residual import fuse_residual
from exporter.passes.fuse_swiglu import fuse_swiglu
from exporter.passes.join_parts import join_parts
from exporter.passes.split_linear import split_linear
from exporter.passes.split_upsampled import split_upsampled

PASSES = (
    join_parts,
    fuse_linear,
    fuse_activations,
    fuse_modulation,
    fuse_norm_rotary,
    fuse_latents_unpack,
    fuse_conv,
    split_upsampled,
    fuse_swiglu,
    fuse_residual,
    split_linear,
)


def run_passes(model: ir.Model) -> ir.Model:
    """Run every pass in order, in place."""
    for fuse in PASSES:
        fuse(model)
    return model
