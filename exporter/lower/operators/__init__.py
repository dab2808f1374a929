"""ONNX operator -> dispatches. One function an operator; `OPERATORS` is the list of what is known.

An operator function reads views of its inputs and writes where `Lowering.result` says.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from exporter.lower.lowering import Lowering
from exporter.lower.operators.attention import attention, layer_norm, norm_rotary, rms_norm
from exporter.lower.operators.image import conv, group_norm, latents_unpack, refuse_conv, refuse_resize
from exporter.lower.operators.layout import concat, expand, reshape, slice_, split, transpose
from exporter.lower.operators.matmul import embedding, linear
from exporter.lower.operators.pointwise import binary, swiglu, unary
from exporter.lower.operators.upsampled import upsampled

OPERATORS: dict[tuple[str, str], Callable[[Lowering, ir.Node], None]] = {
    **{("", name): reshape for name in ("Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")},
    ("", "Transpose"): transpose,
    ("", "Slice"): slice_,
    ("", "Split"): split,
    ("", "Concat"): concat,
    ("", "Expand"): expand,
    **{
        ("", name): unary(name.lower())
        for name in ("Sigmoid", "Neg", "Exp", "Sqrt", "Reciprocal", "Tanh", "Sin", "Cos")
    },
    **{("", name): binary(name.lower()) for name in ("Add", "Sub", "Mul", "Div")},
    ("", "LayerNormalization"): layer_norm,
    ("", "RMSNormalization"): rms_norm,
    ("", "Attention"): attention,
    ("", "Gather"): embedding,
    ("", "Conv"): refuse_conv,
    ("", "GroupNormalization"): group_norm,
    ("", "Resize"): refuse_resize,
    ("bitbrush.fused", "Linear"): linear,
    ("bitbrush.fused", "Conv"): conv,
    ("bitbrush.fused", "Upsampled"): upsampled,
    ("bitbrush.fused", "Silu"): unary("silu"),
    ("bitbrush.fused", "SwiGLU"): swiglu,
    ("bitbrush.fused", "ModulatedNorm"): layer_norm,
    ("bitbrush.fused", "NormRotary"): norm_rotary,
    ("bitbrush.fused", "GroupNormSilu"): group_norm,
    ("bitbrush.fused", "LatentsUnpack"): latents_unpack,
    **{("bitbrush", f"Embedding{kind}G{group}"): embedding for kind in ("Int4", "Int8") for group in (32, 64)},
}
WRITES_ROWS = {linear, swiglu, norm_rotary, attention, layer_norm, rms_norm, embedding}
