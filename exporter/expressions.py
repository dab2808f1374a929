"""Size expressions: the small arithmetic of plans and of kernels' workgroup counts.

An expression is an integer, a float, a symbol (string) or `[op, a, b, ...]` with two or more operands,
folded from the left. The JavaScript runtime evaluates the same form; nothing is ever parsed from text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

Number = int | float


def _integers(op: str, a: Number, b: Number) -> None:
    if not isinstance(a, int) or not isinstance(b, int):
        raise ValueError(f"expression operator {op} takes integers, got {a!r} and {b!r}")
    if b <= 0:
        raise ValueError(f"expression operator {op} needs a positive divisor, got {b!r}")


def _floor_div(a: Number, b: Number) -> Number:
    _integers("floor_div", a, b)
    return a // b


def _ceil_div(a: Number, b: Number) -> Number:
    _integers("ceil_div", a, b)
    return -(-a // b)


OPERATORS: dict[str, Callable[[Number, Number], Number]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floor_div": _floor_div,
    "ceil_div": _ceil_div,
    "min": min,
    "max": max,
}


def evaluate(expression: Any, symbols: Mapping[str, Number]) -> Number:
    """The value of `expression`, with `symbols` giving the value of each name in it.

    Raises:
        ValueError: an unknown name or operator, too few operands, a division of non-integers or by a
            number that is not positive, or something that is no expression at all.
    """
    if isinstance(expression, bool):
        raise ValueError(f"expected an expression, found {expression!r}")
    if isinstance(expression, (int, float)):
        return expression
    if isinstance(expression, str):
        if expression not in symbols:
            raise ValueError(f"unknown symbol {expression!r} in an expression; known: {sorted(symbols)}")
        return symbols[expression]
    if not isinstance(expression, (list, tuple)) or not expression:
        raise ValueError(f"expected a number, a symbol or [op, a, b, ...], found {expression!r}")
    op, *operands = expression
    if not isinstance(op, str) or op not in OPERATORS:
        raise ValueError(f"unknown operator {op!r} in expression {expression!r}; known: {sorted(OPERATORS)}")
    if len(operands) < 2:
        raise ValueError(f"expression operator {op} needs two or more operands, found {expression!r}")
    return reduce(OPERATORS[op], (evaluate(operand, symbols) for operand in operands))
