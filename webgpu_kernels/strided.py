"""Strided views of flat buffers: what records, references and cases share.

A view is an offset, and a size and a stride per axis, all in elements, over a one-dimensional array.
Parts of a buffer outside the view hold NaN, so a kernel that strays shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def indices(offset: int, sizes: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """Element indices of a view, int64[sizes]."""
    grid = np.full(tuple(sizes), offset, dtype=np.int64)
    for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        shape = [1] * len(sizes)
        shape[axis] = size
        grid += np.arange(size, dtype=np.int64).reshape(shape) * stride
    return grid


def gather(buffer: np.ndarray, offset: int, sizes: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """The view's elements as f64[sizes]."""
    return buffer[indices(offset, sizes, strides)].astype(np.float64)


def scatter(elements: int, offset: int, strides: Sequence[int], values: np.ndarray) -> np.ndarray:
    """A buffer f64[elements] that holds `values` at the view and NaN elsewhere."""
    buffer = np.full(elements, np.nan)
    buffer[indices(offset, values.shape, strides)] = values
    return buffer


def guarded(elements: int, offset: int, strides: Sequence[int], values: np.ndarray) -> np.ndarray:
    """The same as a test input, f32[elements]."""
    return scatter(elements, offset, strides, values).astype(np.float32)
