"""Weight formats as kernels see them: bindings, numpy reference and random test weights.

DESIGN.md §3 defines the formats; `wgsl/lib/unpack_<format>.wgsl` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from webgpu_kernels.registry import Binding

LOW_BIT = {"binary": 1, "ternary": 2, "int4": 4, "int8": 8}  # format -> bits a weight
AFFINE = ("int4", "int8")
DENSE = ("f16", "f32")
LOAD_VECTORS = {"f16": 1, "f32": 1, "binary": 4, "ternary": 4, "int4": 2, "int8": 2}  # vec4f that load_weights gives


def weight_bindings(formats: tuple[str, ...]) -> tuple[Binding, ...]:
    """The bindings that hold a weight matrix under the option `weights`."""
    low_bit = tuple(name for name in formats if name in LOW_BIT)
    affine = tuple(name for name in formats if name in AFFINE)
    return (
        Binding("weight", dtype="u32", when={"weights": ("f16",)}),
        Binding("weight", dtype="f32", when={"weights": ("f32",)}),
        Binding("codes", dtype="u32", when={"weights": low_bit}),
        Binding("scales", dtype="u32", when={"weights": low_bit}),
        Binding("offsets", dtype="u32", when={"weights": affine}),
    )


def pairs(values: np.ndarray) -> np.ndarray:
    """f16 values, flattened, as u32 words: two a word, the first in the low half."""
    flat = np.ascontiguousarray(values, np.float16).reshape(-1)
    return np.pad(flat, (0, flat.size % 2)).view(np.uint32)


def _halves(words: np.ndarray, count: int) -> np.ndarray:
    return words.view(np.float16)[:count].astype(np.float64)


def dense(weights: str, inputs: Mapping[str, np.ndarray], rows: int, columns: int, group: int) -> np.ndarray:
    """The weight matrix float64[rows, columns] that the bindings of format `weights` hold."""
    if weights == "f32":
        return inputs["weight"].astype(np.float64).reshape(rows, columns)
    if weights == "f16":
        return _halves(inputs["weight"], rows * columns).reshape(rows, columns)
    bits = LOW_BIT[weights]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (inputs["codes"].reshape(-1, 1) >> shifts) & np.uint32(2**bits - 1)
    values = codes.astype(np.float64).reshape(rows, columns // group, group)
    scales = _halves(inputs["scales"], rows * columns // group).reshape(rows, -1, 1)
    if weights == "binary":
        values = (2 * values - 1) * scales
    elif weights == "ternary":
        values = (values - 1) * scales
    else:
        values = values * scales + _halves(inputs["offsets"], scales.size).reshape(scales.shape)
    return values.reshape(rows, columns)


def random_weights(weights: str, rows: int, columns: int, group: int, seed: int) -> dict[str, Any]:
    """Test inputs for the bindings of format `weights`: a matrix [rows, columns]."""
    rng = np.random.default_rng(seed)
    if weights in DENSE:
        matrix = rng.standard_normal((rows, columns))
        return {"weight": pairs(matrix) if weights == "f16" else matrix.astype(np.float32).reshape(-1)}
    bits = LOW_BIT[weights]
    codes = rng.integers(0, 3 if weights == "ternary" else 2**bits, (rows * columns * bits // 32, 32 // bits))
    words = np.bitwise_or.reduce(codes.astype(np.uint32) << np.arange(0, 32, bits, dtype=np.uint32), axis=1)
    groups = rows * columns // group
    scales = rng.uniform(0.01, 1, groups)
    if weights not in AFFINE:
        return {"codes": words, "scales": pairs(scales)}
    signs = rng.choice((-1.0, 1.0), groups)  # MLX packs have scales of either sign
    return {"codes": words, "scales": pairs(scales * signs), "offsets": pairs(rng.uniform(-2, 2, groups))}
