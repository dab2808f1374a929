"""The state of a lowering: views of values, the plan's values and dispatches so far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy

from exporter.errors import BadBundle
from exporter.lower.bands import Expression, Window
from exporter.lower.sizes import Size, divisible, product, shape_of, to_json
from exporter.lower.views import Heads, Operand, Rows, View
from exporter.passes.match import constant, is_stored

MAX_RANK = {"unary": 6, "binary": 4}


class Lowering:
    """Collects dispatches for one component's graph; operators (operators.py) call its methods."""

    def __init__(self, model: ir.Model, destinations: dict[str, tuple[ir.Value, int, Size]]) -> None:
        self.graph = model.graph
        self.destinations = destinations  # value name -> (concatenation, axis, start): written in place
        self.views: dict[str, View] = {}
        self.values: list[dict[str, Any]] = []
        self.dispatches: list[dict[str, Any]] = []
        self.loops: list[dict[str, Any]] = []
        self.outputs = {value.name for value in model.graph.outputs}
        self.places = {node: place for place, node in enumerate(model.graph)}
        self.whole: dict[str, View] = {}  # concatenations allocated before their own node is reached
        for value in model.graph.inputs:
            dtype = "f32" if value.dtype == ir.DataType.FLOAT else "u32"
            index = self.add_value(value.name, "input", product(shape_of(value)), dtype)
            self.views[value.name] = View.contiguous(index, shape_of(value))

    # values -------------------------------------------------------------------------------------

    def add_value(self, name: str, role: str, elements: Size | Expression, dtype: str = "f32") -> int:
        elements = to_json(elements) if isinstance(elements, sympy.Expr) else elements
        self.values.append({"name": name, "role": role, "dtype": dtype, "elements": elements})
        return len(self.values) - 1

    def allocate(self, name: str, shape: tuple[Size, ...], order: tuple[int, ...] | None = None) -> View:
        """A new buffer for `shape`; `order` lists the axes from outermost to innermost in memory."""
        role = "output" if name in self.outputs else "temporary"
        index = self.add_value(name, role, product(shape))
        order = order or tuple(range(len(shape)))
        stored = View.contiguous(index, tuple(shape[axis] for axis in order))
        return stored.transpose([order.index(axis) for axis in range(len(shape))])

    def result(self, value: ir.Value, order: tuple[int, ...] | None = None) -> View:
        """Where to write `value`: a part of a concatenation, or a buffer of its own."""
        target = self.destinations.get(value.name)
        if target is None or order is not None:
            view = self.allocate(value.name, shape_of(value), order)
        else:
            whole, axis, start = target
            if whole.name not in self.whole:
                self.whole[whole.name] = self.allocate(whole.name, shape_of(whole))
            view = self.whole[whole.name].slice(axis, start, shape_of(value)[axis])
        self.views[value.name] = view
        return view

    def view(self, value: ir.Value) -> View:
        """The view of an operand: a computed value or a stored tensor with one axis."""
        if value.name in self.views:
            return self.views[value.name]
        if is_stored(value):
            return View.contiguous(value.name, shape_of(value))
        raise BadBundle(
            f"graph: value {value.name} is used before it is computed, or is a constant that no kernel takes"
        )

    def is_last_use(self, view: View, node: ir.Node) -> bool:
        """Whether no node after `node` reads the buffer of `view`, nor anybody outside the plan."""
        if self.values[view.operand]["role"] != "temporary":
            return False
        if any(whole.operand == view.operand for whole in self.whole.values()):
            return False
        names = {name for name, other in self.views.items() if other.operand == view.operand}
        later = [n for n, place in self.places.items() if place > self.places[node]]
        read = {value.name for other in later for value in other.inputs if value is not None}
        return not names & (read | self.outputs)

    # operands -----------------------------------------------------------------------------------

    def materialize(self, view: View, name: str, order: tuple[int, ...] | None = None) -> View:
        """A contiguous copy of `view` (axes in `order`)."""
        target = self.allocate(name, view.shape, order)
        self.unary("identity", view, target, name)
        return target

    def rows(self, view: View, columns: Size, name: str) -> Rows:
        """`view` as [rows, columns] with unit stride along columns; copies where it must."""
        count = sympy.cancel(product(view.shape) / columns)
        flat = view.reshape((sympy.expand(count), columns))
        if flat is None or (columns != 1 and flat.strides[1] != 1):
            flat = self.materialize(view, f"{name}/rows").reshape((sympy.expand(count), columns))
        return Rows(flat, flat.strides[0] if flat.shape[0] != 1 else columns)

    def heads(self, view: View, heads: int, size: int, name: str) -> Heads:
        """`view` as [tokens, heads, size] with unit stride along a head; copies where it must."""
        tokens = sympy.cancel(product(view.shape) / (heads * size))
        split = view.reshape((sympy.expand(tokens), sympy.Integer(heads), sympy.Integer(size)))
        if split is None or split.strides[2] != 1:
            split = self.materialize(view, f"{name}/heads").reshape((tokens, sympy.Integer(heads), sympy.Integer(size)))
        return Heads(split, split.strides[0], split.strides[1])

    def image(self, view: View, name: str) -> View:
        """`view` [1, C, H, W] laid out height, width, channels without gaps; copies where it must."""
        if view.transpose([0, 2, 3, 1]).is_contiguous():
            return view
        return self.materialize(view, f"{name}/image", (0, 2, 3, 1))

    def integers(self, value: ir.Value | None) -> list[Size] | None:
        """A shape-like operand as a list of sizes, computed symbolically where it is not constant."""
        if value is None:
            return None
        data = constant(value)
        if data is not None:
            return [sympy.Integer(int(number)) for number in np.atleast_1d(data)]
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "Shape":
            shape = shape_of(node.inputs[0])
            start = node.attributes["start"].value if "start" in node.attributes else 0
            end = node.attributes["end"].value if "end" in node.attributes else len(shape)
            return list(shape[start:end])
        parts = [self.integers(i) for i in node.inputs if i is not None]
        if any(part is None for part in parts):
            return None
        if node.op_type in ("Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity"):
            return parts[0]
        if node.op_type == "Concat":
            return [size for part in parts for size in part]
        if node.op_type in ("Add", "Mul", "Sub"):
            operation = {"Add": sympy.Add, "Mul": sympy.Mul, "Sub": lambda a, b: a - b}[node.op_type]
            return [sympy.expand(operation(a, b)) for a, b in zip(*parts, strict=True)]
        return None

    # dispatches ---------------------------------------------------------------------------------

    @contextmanager
    def loop(self, rows: Expression, band_rows: Expression) -> Iterator[None]:
        """The dispatches made inside run once for each band of `band_rows` of `rows` rows (exporter/lower/bands.py)."""
        first = len(self.dispatches)
        yield
        last = len(self.dispatches) - 1
        self.loops.append({"first": first, "last": last, "rows": rows, "band_rows": band_rows})

    def dispatch(
        self,
        kernel: str,
        bindings: dict[str, View | Window | Operand | dict[str, Any]],
        *,
        uniforms: dict[str, Any] | None = None,
        constants: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        source: str = "",
        when: Expression = 1,
    ) -> None:
        """Append a dispatch; it is left out where the expression `when` is 0."""
        self.dispatches.append(
            {
                "kernel": kernel,
                "options": options or {},
                "constants": {name: to_json(size) for name, size in (constants or {}).items()},
                "uniforms": {
                    name: to_json(sympy.expand(size)) if isinstance(size, sympy.Expr) else size
                    for name, size in (uniforms or {}).items()
                },
                "bindings": {name: _bound(binding) for name, binding in bindings.items()},
                "source": source,
                **({} if when == 1 else {"when": when}),
            }
        )

    def unary(self, op: str, x: View, y: View, source: str) -> None:
        (shape, (xs, ys)) = _collapse(x.shape, [x, y])
        self._pointwise("unary", op, shape, {"x": (x, xs), "y": (y, ys)}, source)

    def binary(self, op: str, a: View, b: View, y: View, source: str) -> None:
        a, b = a.expand(y.shape), b.expand(y.shape)
        (shape, (strides_a, strides_b, strides_y)) = _collapse(y.shape, [a, b, y])
        self._pointwise("binary", op, shape, {"a": (a, strides_a), "b": (b, strides_b), "y": (y, strides_y)}, source)

    def _pointwise(self, kernel: str, op: str, shape, operands, source: str) -> None:
        most = MAX_RANK[kernel]
        if len(shape) > most:
            raise BadBundle(f"{source}: an operand of at most {most} axes expected, found {len(shape)}")
        uniforms: dict[str, Any] = {}
        for axis in range(most):
            uniforms[f"d{axis}"] = shape[axis] if axis < len(shape) else 1
        for name, (view, strides) in operands.items():
            uniforms[f"{name}_offset"] = view.offset
            for axis in range(most):
                uniforms[f"{name}_s{axis}"] = strides[axis] if axis < len(strides) else 0
        self.dispatch(
            kernel,
            {name: view for name, (view, _) in operands.items()},
            uniforms=uniforms,
            options={"op": op, "rank": max(len(shape), 1)},
            source=source,
        )


def _bound(binding: View | Window | Operand) -> dict[str, Expression] | Operand:
    if isinstance(binding, Window):
        return binding.to_json()
    return binding.operand if isinstance(binding, View) else binding


def _collapse(shape: tuple[Size, ...], views: list[View]) -> tuple[list[Size], list[list[Size]]]:
    """Drop axes of size 1 and merge neighbours that lie as one in every view."""
    kept = [axis for axis, size in enumerate(shape) if size != 1]
    sizes = [shape[axis] for axis in kept]
    strides = [[view.strides[axis] for axis in kept] for view in views]
    axis = 0
    while axis + 1 < len(sizes):
        if all(sympy.expand(s[axis] - s[axis + 1] * sizes[axis + 1]) == 0 for s in strides):
            sizes[axis : axis + 2] = [product(sizes[axis : axis + 2])]
            for s in strides:
                del s[axis]
        else:
            axis += 1
    return sizes or [sympy.Integer(1)], [s or [sympy.Integer(0)] for s in strides]


def aligned(*sizes: Size) -> bool:
    """Whether all offsets, strides and lengths are multiples of 4, as vec4f access asks."""
    return all(divisible(sympy.sympify(size), 4) for size in sizes)
