"""Row bands: how pictures that no binding holds are computed, and the arithmetic of the plan's expressions.

A loop of the plan goes over the rows of a picture, at most `band_rows` at a time. Inside it the symbols
`band` (0, 1, …), `bands` (how many), `band_first` and `band_end` (the band's rows) have values. The runtime
chooses two more, free symbols of such a plan, by what the device allows (site/js/runtime/bands.js):
`band_elements`, the most f32 elements of a picture that a band may have, and `held_elements`, the most
that a picture may have to be kept whole where it could also be computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from exporter.expressions import OPERATORS, evaluate

Expression = Any  # int | float | name | [op, …]; DESIGN.md §4

BAND_SYMBOLS = ("band", "bands", "band_first", "band_end")
BAND_BYTES = 64 * 2**20
HELD_BYTES = 512 * 2**20
WINDOW = 64  # elements; bindings start at multiples of 256 bytes

FIRST, END = "band_first", "band_end"
ROWS = ["sub", END, FIRST]


def free_symbols(binding_bytes: int = BAND_BYTES, buffer_bytes: int = 2 * HELD_BYTES) -> dict[str, int]:
    """The values that the runtime gives a decoder's free symbols (site/js/runtime/bands.js does the same).

    Args:
        binding_bytes: the device's maxStorageBufferBindingSize.
        buffer_bytes: its maxBufferSize.
    """
    return {
        "band_elements": min(binding_bytes, BAND_BYTES) // 4,
        "held_elements": min(buffer_bytes // 2, HELD_BYTES) // 4,
    }


def unrolled(plan: Mapping[str, Any], symbols: Mapping[str, int]) -> Iterator[tuple[dict[str, Any], Mapping[str, int]]]:
    """The dispatches of a plan in the order in which they run, each with the symbols of its band."""
    loops = {loop["first"]: loop for loop in plan["loops"]}
    position = 0
    while position < len(plan["dispatches"]):
        loop = loops.get(position)
        last = loop["last"] if loop else position
        for here in _bands(loop, symbols) if loop else [symbols]:
            for dispatch in plan["dispatches"][position : last + 1]:
                if evaluate(dispatch.get("when", 1), here):
                    yield dispatch, here
        position = last + 1


def _bands(loop: Mapping[str, Any], symbols: Mapping[str, int]) -> Iterator[dict[str, int]]:
    rows, step = evaluate(loop["rows"], symbols), evaluate(loop["band_rows"], symbols)
    for band, first in enumerate(range(0, rows, step)):
        found = {"band": band, "bands": -(-rows // step), "band_first": first, "band_end": min(first + step, rows)}
        yield {**symbols, **found}


def symbols_of(expression: Expression) -> set[str]:
    """The names in an expression."""
    if isinstance(expression, str):
        return {expression}
    if isinstance(expression, (list, tuple)):
        return {name for operand in expression[1:] for name in symbols_of(operand)}
    return set()


def add(*terms: Expression) -> Expression:
    return _folded("add", terms, 0)


def mul(*factors: Expression) -> Expression:
    return 0 if 0 in factors else _folded("mul", factors, 1)


def sub(a: Expression, b: Expression) -> Expression:
    if b == 0 or a == b:
        return a if b == 0 else 0
    return a - b if isinstance(a, int) and isinstance(b, int) else ["sub", a, b]


def binary(op: str) -> Callable[[Expression, Expression], Expression]:
    """floor_div, ceil_div, min or max of two expressions; computed at once where both are numbers."""
    return lambda a, b: OPERATORS[op](a, b) if isinstance(a, int) and isinstance(b, int) else [op, a, b]


floor_div, ceil_div, least, most = (binary(op) for op in ("floor_div", "ceil_div", "min", "max"))


def _folded(op: str, operands, neutral: int) -> Expression:
    """Operands in one list, their integers put together in front."""
    flat: list[Expression] = []
    for operand in operands:
        flat += operand[1:] if isinstance(operand, list) and operand[0] == op else [operand]
    whole = neutral
    for number in (o for o in flat if isinstance(o, int)):
        whole = OPERATORS[op](whole, number)
    rest = [o for o in flat if not isinstance(o, int)]
    rest = rest if whole == neutral else [whole, *rest]
    return neutral if not rest else rest[0] if len(rest) == 1 else [op, *rest]


def divisor(expression: Expression) -> int:
    """A number that divides the expression whatever its symbols are; 0 for the number 0."""
    if isinstance(expression, int):
        return abs(expression)
    if isinstance(expression, list) and expression[0] in ("add", "sub", "min", "max"):
        return math.gcd(*(divisor(operand) for operand in expression[1:]))
    if isinstance(expression, list) and expression[0] == "mul":
        return math.prod(divisor(operand) for operand in expression[1:])
    return 1


class Window(NamedTuple):
    """A part of a plan value that a dispatch binds: `elements` from element `first` on."""

    value: int
    first: Expression
    elements: Expression

    @staticmethod
    def of(value: int, start: Expression, elements: Expression) -> tuple[Window, Expression]:
        """The window that holds `elements` from `start` on, and where in it they begin."""
        if divisor(start) % WINDOW == 0:
            return Window(value, start, elements), 0
        first = mul(WINDOW, floor_div(start, WINDOW))
        return Window(value, first, add(elements, sub(start, first))), sub(start, first)

    def to_json(self) -> dict[str, Expression]:
        return {"value": self.value, "first": self.first, "elements": self.elements}


class Picture(NamedTuple):
    """Rows of an image f32[height, width, channels] that lie in a plan value, without gaps, from `start` on.

    `first_row` is the image's row there: 0 for a whole picture, more for a band of one.
    """

    value: int
    height: Expression
    width: Expression
    channels: int
    start: Expression = 0
    first_row: Expression = 0

    @property
    def row(self) -> Expression:
        """Elements of a row."""
        return mul(self.width, self.channels)

    @property
    def elements(self) -> Expression:
        return mul(self.height, self.row)

    def rows(self, first: Expression, end: Expression) -> tuple[Window, Expression]:
        """The window of the image's rows first … end − 1, and where in it they begin."""
        start = add(self.start, mul(sub(first, self.first_row), self.row))
        return Window.of(self.value, start, mul(sub(end, first), self.row))


def band_rows(height: Expression, row_elements: Expression, halo: int = 0) -> Expression:
    """Rows of a band of a picture with `height` rows of so many elements.

    `halo` more rows are bound with a band, unless the whole picture is one.
    """
    fits = at_most(mul(height, row_elements), "band_elements") if halo else 0
    return most(1, sub(floor_div("band_elements", row_elements), mul(halo, sub(1, fits))))


def at_most(elements: Expression, limit: Expression) -> Expression:
    """1 if elements <= limit, else 0."""
    return least(1, floor_div(limit, elements))
