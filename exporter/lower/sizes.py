"""Symbolic sizes: sympy while lowering, plain JSON expressions in the plan.

Symbols are positive integers (token counts, rows, columns), so products and sums have one canonical
form and equality is decidable.
"""

from __future__ import annotations

import functools
from typing import Any

import onnx_ir as ir
import sympy

Size = sympy.Expr


@functools.cache
def symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


@functools.cache
def _parse(text: str) -> Size:
    names = {name: symbol(name) for name in ("image_tokens", "text_tokens", "rows", "columns")}
    expression = sympy.expand(sympy.sympify(text, locals=names))
    unknown = expression.free_symbols - set(names.values())
    if unknown:
        raise ValueError(f"a size over image_tokens, text_tokens, rows or columns expected, {text!r} found")
    return expression


def size_of(dimension: int | ir.SymbolicDim | sympy.Expr) -> Size:
    """A dimension of an annotated ONNX shape as an expression."""
    if isinstance(dimension, ir.SymbolicDim):
        return _parse(str(dimension.value))
    return sympy.sympify(dimension)


def shape_of(value: ir.Value) -> tuple[Size, ...]:
    """The annotated shape of a value.

    Raises:
        ValueError: no shape, or a symbol that the plan does not know.
    """
    if value.shape is None:
        raise ValueError(f"value {value.name}: an annotated shape expected, none found")
    return tuple(size_of(dimension) for dimension in value.shape)


def product(sizes) -> Size:
    result = sympy.Integer(1)
    for size in sizes:
        result = sympy.expand(result * size)
    return result


def divisible(size: Size, number: int) -> bool:
    """Whether `size` is a multiple of `number` whatever the symbols are."""
    return all(term.as_coeff_Mul()[0] % number == 0 for term in sympy.Add.make_args(sympy.expand(size)))


def to_json(size: Size | int | float) -> Any:
    """An expression of the plan: integer, float, symbol or [op, …] (DESIGN.md §4)."""
    if isinstance(size, (int, float)):
        return size
    if size.is_Integer:
        return int(size)
    if size.is_Float:
        return float(size)
    if size.is_Symbol:
        return size.name
    if size.is_Add:
        return ["add", *(to_json(term) for term in sorted(size.args, key=str))]
    if size.is_Mul:
        return ["mul", *(to_json(factor) for factor in sorted(size.args, key=str))]
    if size.is_Pow and size.exp.is_Integer and size.exp > 0:
        return ["mul", *[to_json(size.base)] * int(size.exp)]
    raise ValueError(f"a sum of products of sizes expected, {size} found")
