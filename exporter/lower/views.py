"""Strided views: how Reshape, Transpose, Slice and Split cost nothing.

A view is a buffer, an element offset, and a size and stride for each axis, all symbolic. Axes of size
1 are ignored wherever layouts are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import sympy

from exporter.lower.sizes import Size, product

ZERO = sympy.Integer(0)
Operand = int | str  # index of a plan value, or name of a stored tensor


@dataclass(frozen=True, slots=True)
class View:
    """Elements of `operand` at offset + Σ index·stride."""

    operand: Operand
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    offset: Size = ZERO

    @staticmethod
    def contiguous(operand: Operand, shape: tuple[Size, ...], offset: Size = ZERO) -> View:
        return View(operand, shape, contiguous_strides(shape), offset)

    def axes(self) -> list[tuple[Size, Size]]:
        """(size, stride) of every axis whose size is not 1, outermost first."""
        return [(size, stride) for size, stride in zip(self.shape, self.strides, strict=True) if size != 1]

    def is_contiguous(self) -> bool:
        expected = sympy.Integer(1)
        for size, stride in reversed(self.axes()):
            if sympy.expand(stride - expected) != 0:
                return False
            expected = sympy.expand(expected * size)
        return True

    def transpose(self, order: list[int]) -> View:
        return View(
            self.operand, tuple(self.shape[i] for i in order), tuple(self.strides[i] for i in order), self.offset
        )

    def slice(self, axis: int, start: Size, size: Size) -> View:
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return View(self.operand, shape, self.strides, sympy.expand(self.offset + start * self.strides[axis]))

    def reshape(self, shape: tuple[Size, ...]) -> View | None:
        """The same elements in order under another shape, or None if that needs a copy."""
        old, new = self.axes(), [size for size in shape if size != 1]
        strides: list[Size] = []
        while new:
            run, rest = _matching_run(old, new)
            if run is None:
                return None
            merged = _merged_stride(old[: run[0]])
            if merged is None:
                return None
            inner: list[Size] = []
            for size in reversed(new[: run[1]]):
                inner.insert(0, merged)
                merged = sympy.expand(merged * size)
            strides += inner
            old, new = rest
        if old:
            return None
        kept = iter(strides)
        full = tuple(next(kept) if size != 1 else sympy.Integer(1) for size in shape)
        return View(self.operand, shape, full, self.offset)

    def expand(self, shape: tuple[Size, ...]) -> View:
        """Broadcast to `shape`: new and stretched axes get stride 0."""
        lead = len(shape) - len(self.shape)
        strides = [sympy.Integer(0)] * lead
        for size, stride, target in zip(self.shape, self.strides, shape[lead:], strict=True):
            strides.append(stride if size == target else sympy.Integer(0))
        return View(self.operand, shape, tuple(strides), self.offset)


class Rows(NamedTuple):
    """A view [rows, columns] whose columns lie together."""

    view: View
    stride: Size

    def uniforms(self, name: str) -> dict[str, Size]:
        """Where a kernel finds the rows of its operand `name`."""
        return {f"{name}_offset": self.view.offset, f"{name}_stride": self.stride}


class Heads(NamedTuple):
    """A view [tokens, heads, head_size] whose heads lie together."""

    view: View
    stride: Size
    head_stride: Size

    def uniforms(self, name: str) -> dict[str, Size]:
        """Where a kernel finds the heads of its operand `name`."""
        return {**Rows(self.view, self.stride).uniforms(name), f"{name}_head_stride": self.head_stride}


def contiguous_strides(shape: tuple[Size, ...]) -> tuple[Size, ...]:
    strides, step = [], sympy.Integer(1)
    for size in reversed(shape):
        strides.insert(0, step)
        step = sympy.expand(step * size)
    return tuple(strides)


def _matching_run(old, new):
    """The shortest leading runs of old and new axes with equal products: ((n_old, n_new), rest)."""
    i = j = 0
    left = right = sympy.Integer(1)
    while True:
        if i and j and sympy.expand(left - right) == 0:
            return (i, j), (old[i:], new[j:])
        ratio = sympy.cancel(left / right) if i and j else None
        take_old = i == 0 or (j > 0 and sympy.denom(ratio) != 1)
        if take_old and i < len(old):
            left, i = product((left, old[i][0])), i + 1
        elif j < len(new):
            right, j = product((right, new[j])), j + 1
        elif i < len(old):
            left, i = product((left, old[i][0])), i + 1
        else:
            return None, (old, new)


def _merged_stride(axes) -> Size | None:
    """The innermost stride if the axes lie as one, else None."""
    for (_, outer), (size, inner) in zip(axes, axes[1:], strict=False):
        if sympy.expand(outer - inner * size) != 0:
            return None
    return axes[-1][1]
