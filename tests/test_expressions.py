"""Size expressions: values, and one clear error for everything that is no expression."""

from __future__ import annotations

import pytest

from exporter.expressions import evaluate

SYMBOLS = {"rows": 77, "N": 1152, "EPS": 1e-5}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (7, 7),
        (0.5, 0.5),
        ("rows", 77),
        (["add", "rows", 1, 2], 80),
        (["sub", 10, 3, 2], 5),
        (["mul", "rows", 2, 3], 462),
        (["floor_div", "N", 64], 18),
        (["ceil_div", "rows", 8], 10),
        (["ceil_div", 80, 8], 10),
        (["min", "rows", 100, 50], 50),
        (["max", ["ceil_div", "rows", 64], 1], 2),
        (("mul", "EPS", 2), 2e-5),
    ],
)
def test_expression_has_value(expression: object, value: float) -> None:
    assert evaluate(expression, SYMBOLS) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("columns", "unknown symbol 'columns'"),
        (["pow", 2, 3], "unknown operator 'pow'"),
        (["add", 1], "two or more operands"),
        ([], "expected a number"),
        (None, "expected a number"),
        (True, "found True"),
        ([["add"], 1, 2], "unknown operator"),
        (["ceil_div", "rows", 0], "positive divisor"),
        (["floor_div", "rows", -8], "positive divisor"),
        (["floor_div", "rows", "EPS"], "takes integers"),
    ],
)
def test_what_is_no_expression_is_refused(expression: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(expression, SYMBOLS)
