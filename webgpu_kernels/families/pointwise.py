"""Elementwise kernels: swiglu, unary and binary.

`unary` and `binary` take any strided views; the axes beyond `rank` have size 1 and stride 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from webgpu_kernels.grid import MAX_GROUPS, folded, threads
from webgpu_kernels.registry import Binding, Case, Kernel, Variant, register
from webgpu_kernels.strided import gather, guarded, scatter

LARGE = 41_000.0  # magnitude that residual streams of the networks reach
FOLDED_ROWS = MAX_GROUPS + 200  # with one workgroup a row, the grid folds into y

_BLOCKED_ROWS = folded(["mul", "rows", ["ceil_div", "COLUMNS", 256]])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


_FUNCTIONS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {  # op -> WGSL, numpy
    "identity": ("x", lambda x: x),
    "silu": ("silu(x)", lambda x: x * _sigmoid(x)),
    "sigmoid": ("sigmoid(x)", _sigmoid),
    "neg": ("-x", np.negative),
    "exp": ("exp(x)", np.exp),
    "sqrt": ("sqrt(x)", np.sqrt),
    "reciprocal": ("1.0 / x", np.reciprocal),
    "tanh": ("bounded_tanh(x)", np.tanh),
    "sin": ("sin(x)", np.sin),
    "cos": ("cos(x)", np.cos),
    "gelu": ("gelu(x)", lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
}
_OPERATORS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "add": ("+", np.add),
    "sub": ("-", np.subtract),
    "mul": ("*", np.multiply),
    "div": ("/", np.divide),
}


def _swiglu_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    sizes = (uniforms["rows"], constants["COLUMNS"])
    gate = gather(inputs["gate"], uniforms["gate_offset"], sizes, (uniforms["gate_stride"], 1))
    up = gather(inputs["up"], uniforms["up_offset"], sizes, (uniforms["up_stride"], 1))
    y = gate * _sigmoid(gate) * up
    return {"y": scatter(outputs["y"], uniforms["y_offset"], (uniforms["y_stride"], 1), y)}


def _swiglu_cases() -> list[Case]:
    cases = []
    for name, rows, columns, magnitude in (
        ("one", 1, 1, 1.0),
        ("odd", 77, 301, 3.0),
        ("large", 3, 64, LARGE),
        ("folded", FOLDED_ROWS, 1, 1.0),
    ):
        random = np.random.default_rng(1)
        gate, up = random.standard_normal((2, rows, columns)) * magnitude
        both = 2 * columns + 3  # gate and up lie side by side in one buffer's rows
        uniforms = {
            "rows": rows, "gate_offset": 5, "gate_stride": both, "up_offset": 2, "up_stride": columns + 1,
            "y_offset": 7, "y_stride": columns + 2,
        }  # fmt: skip
        inputs = {
            "gate": guarded(5 + rows * both, 5, (both, 1), gate),
            "up": guarded(2 + rows * (columns + 1), 2, (columns + 1, 1), up),
        }
        cases.append(Case(name, {}, {"COLUMNS": columns}, uniforms, inputs, {"y": 7 + rows * (columns + 2)}))
    return cases


SWIGLU = register(
    Kernel(
        name="swiglu",
        bindings=(Binding("gate"), Binding("up"), Binding("y", "read_write")),
        constants={"COLUMNS": "u32"},
        uniforms=dict.fromkeys(
            ["rows", "gate_offset", "gate_stride", "up_offset", "up_stride", "y_offset", "y_stride"], "u32"
        ),
        options={},
        variants=(Variant("baseline", "swiglu.wgsl", _BLOCKED_ROWS),),
        reference=_swiglu_reference,
        cases=_swiglu_cases,
    )
)


def _view_uniforms(axes: int, operands: tuple[str, ...]) -> dict[str, str]:
    names = [f"d{axis}" for axis in range(axes)]
    for operand in operands:
        names += [f"{operand}_offset", *(f"{operand}_s{axis}" for axis in range(axes))]
    return dict.fromkeys(names, "u32")


def _elements_grid(axes: int) -> tuple[Any, Any, Any]:
    return threads(["mul", *(f"d{axis}" for axis in range(axes))])


def _strides(uniforms: Mapping[str, Any], operand: str, axes: int) -> list[int]:
    return [uniforms[f"{operand}_s{axis}"] for axis in range(axes)]


def _view_case(name, options, axes: int, operands, sizes, strides, offsets, error: float = 1e-5) -> Case:
    """A case over views: `operands` maps binding names to arrays of shape `sizes` (None: the output).

    An operand's array has size 1 along axes where its stride is 0.
    """
    pad = axes - len(sizes)
    uniforms = {f"d{axis}": size for axis, size in enumerate((*sizes, *[1] * pad))}
    inputs, outputs = {}, {}
    for operand, values in operands.items():
        steps = strides[operand]
        uniforms[f"{operand}_offset"] = offsets[operand]
        uniforms |= {f"{operand}_s{axis}": step for axis, step in enumerate((*steps, *[0] * pad))}
        elements = offsets[operand] + 1 + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
        if values is None:
            outputs[operand] = elements
        else:
            inputs[operand] = guarded(elements, offsets[operand], steps, values)
    return Case(name, options, {}, uniforms, inputs, outputs, error)


def _contiguous(sizes) -> list[int]:
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]


def _unary_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    sizes = [uniforms[f"d{axis}"] for axis in range(6)]
    x = gather(inputs["x"], uniforms["x_offset"], sizes, _strides(uniforms, "x", 6))
    y = _FUNCTIONS[options["op"]][1](x)
    return {"y": scatter(outputs["y"], uniforms["y_offset"], _strides(uniforms, "y", 6), y)}


def _unary_values(op: str, random: np.random.Generator, sizes) -> np.ndarray:
    values = random.standard_normal(sizes)
    if op in ("sqrt", "reciprocal"):
        return np.abs(values) + 0.1
    if op in ("sin", "cos"):  # WGSL promises accuracy within [-pi, pi] alone
        return np.clip(values, -3, 3)
    return values * (4 if op in ("exp", "gelu") else 1000 if op == "neg" else 1)


def _unary_cases() -> list[Case]:
    random = np.random.default_rng(3)
    cases = []
    for op in _FUNCTIONS:
        values = _unary_values(op, random, (301,))
        # WGSL lets sin and cos be off by 2^-11
        error = 1e-3 if op in ("sin", "cos") else 1e-5
        cases.append(_view_case(f"{op}_contiguous", {"op": op, "rank": 1}, 6, {"x": values, "y": None}, (301,),
                                {"x": [1], "y": [1]}, {"x": 3, "y": 5}, error))  # fmt: skip
    for op in ("identity", "silu", "sigmoid", "tanh", "gelu"):
        values = random.standard_normal((77,)) * LARGE
        cases.append(_view_case(f"{op}_large", {"op": op, "rank": 1}, 6, {"x": values, "y": None}, (77,),
                                {"x": [3], "y": [2]}, {"x": 1, "y": 0}))  # fmt: skip
    for rank, sizes in enumerate(((5,), (3, 77), (5, 1, 3), (2, 3, 5, 7), (2, 3, 1, 5, 3), (2, 3, 2, 1, 3, 5)), 1):
        x_strides = [2 * stride for stride in _contiguous(sizes)]
        y_strides = _contiguous(sizes[::-1])[::-1]  # axes reversed: a transpose
        cases.append(_view_case(f"transpose_rank_{rank}", {"op": "identity", "rank": rank}, 6,
                                {"x": random.standard_normal(sizes), "y": None}, sizes,
                                {"x": x_strides, "y": y_strides}, {"x": 4, "y": 3}))  # fmt: skip
    # Strides of 0 along the second axis: the grid folds though the buffers are small. The last elements
    # are written by the folded part alone, each several times with the same value.
    repeats = 100_000
    sizes = (MAX_GROUPS * 256 // repeats + 20, repeats)
    column = np.broadcast_to(random.standard_normal((sizes[0], 1)), sizes)
    cases.append(_view_case("folded", {"op": "neg", "rank": 2}, 6, {"x": column, "y": None}, sizes,
                            {"x": [1, 0], "y": [1, 0]}, {"x": 0, "y": 0}))  # fmt: skip
    return cases


UNARY = register(
    Kernel(
        name="unary",
        bindings=(Binding("x"), Binding("y", "read_write")),
        constants={},
        uniforms=_view_uniforms(6, ("x", "y")),
        options={"op": tuple(_FUNCTIONS), "rank": (1, 2, 3, 4, 5, 6)},
        variants=(
            Variant(
                "baseline",
                "unary.wgsl",
                _elements_grid(6),
                context={"expressions": {op: text for op, (text, _) in _FUNCTIONS.items()}},
            ),
        ),
        reference=_unary_reference,
        cases=_unary_cases,
    )
)


def _binary_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    sizes = [uniforms[f"d{axis}"] for axis in range(4)]
    a = gather(inputs["a"], uniforms["a_offset"], sizes, _strides(uniforms, "a", 4))
    b = gather(inputs["b"], uniforms["b_offset"], sizes, _strides(uniforms, "b", 4))
    y = _OPERATORS[options["op"]][1](a, b)
    return {"y": scatter(outputs["y"], uniforms["y_offset"], _strides(uniforms, "y", 4), y)}


def _binary_cases() -> list[Case]:
    random = np.random.default_rng(4)
    cases = []
    for op in _OPERATORS:
        a, b = random.standard_normal((2, 301)) * LARGE
        b = np.where(np.abs(b) < 1, 1, b)  # keeps quotients of the norm's order
        cases.append(_view_case(f"{op}_contiguous", {"op": op, "rank": 1}, 4, {"a": a, "b": b, "y": None}, (301,),
                                {"a": [1], "b": [1], "y": [1]}, {"a": 1, "b": 3, "y": 5}))  # fmt: skip
    for rank, sizes in enumerate(((7,), (77, 3), (3, 5, 7), (2, 3, 5, 3)), 1):
        row = random.standard_normal(sizes[-1])  # broadcast over the leading axes
        y_strides = _contiguous(sizes[::-1])[::-1]
        cases.append(_view_case(f"broadcast_rank_{rank}", {"op": "mul", "rank": rank}, 4,
                                {"a": random.standard_normal(sizes), "b": np.broadcast_to(row, sizes), "y": None},
                                sizes, {"a": [2 * s for s in _contiguous(sizes)], "b": [0] * (rank - 1) + [1],
                                        "y": y_strides}, {"a": 4, "b": 2, "y": 3}))  # fmt: skip
    return cases


BINARY = register(
    Kernel(
        name="binary",
        bindings=(Binding("a"), Binding("b"), Binding("y", "read_write")),
        constants={},
        uniforms=_view_uniforms(4, ("a", "b", "y")),
        options={"op": tuple(_OPERATORS), "rank": (1, 2, 3, 4)},
        variants=(
            Variant(
                "baseline",
                "binary.wgsl",
                _elements_grid(4),
                context={"symbols": {op: symbol for op, (symbol, _) in _OPERATORS.items()}},
            ),
        ),
        reference=_binary_reference,
        cases=_binary_cases,
    )
)
