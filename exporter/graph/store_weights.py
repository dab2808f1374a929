"""Pass: give every weight of an exported graph the form in which the bundle stores it.

Requires: initializers that are checkpoint tensors have no data and checkpoint names.
Ensures: each of them is a `StoredTensor`'s part with its stored type and shape; low-bit linears and
embeddings are nodes of the domain `bitbrush`, whose functions the model carries; dense matrices pass
a Cast to f32, convolution weights a Transpose to ONNX's order.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import onnx_ir as ir

from exporter.errors import BadCheckpoint
from exporter.graph import functions
from exporter.link import TYPES
from exporter.storage import StoredTensor

Choose = Callable[[str, tuple[int, ...]], tuple[str, int]]  # (name, shape) -> (kind, group)
Origin = tuple[str, str | None, float]  # checkpoint tensor, transform, its epsilon

PACKED = re.compile(r"^(single_)?transformer_blocks\.\d+\.(attn|ff|ff_context)\..*weight$")


def denoiser_kind(weights: str, notes: list[str]) -> Choose:
    """The rule of the low-bit checkpoints: attention, MLP and output projections of the blocks."""

    def choose(name: str, shape: tuple[int, ...]) -> tuple[str, int]:
        if len(shape) != 2 or weights == "keep" or not PACKED.match(name):
            return dense_kind(name, shape)
        if shape[1] % 128:
            notes.append(f"{name}: {shape[1]} columns are no multiple of 128, kept dense")
            return dense_kind(name, shape)
        return weights, 128

    return choose


def encoder_kind(bits: int, notes: list[str]) -> Choose:
    """Affine weights in groups of 64 (32 where 64 does not divide a row)."""

    def choose(name: str, shape: tuple[int, ...]) -> tuple[str, int]:
        if len(shape) != 2 or bits == 16:
            return dense_kind(name, shape)
        for group in (64, 32):
            if shape[1] % group == 0:
                return f"int{bits}", group
        notes.append(f"{name}: {shape[1]} columns are no multiple of 32, kept dense")
        return dense_kind(name, shape)

    return choose


def dense_kind(name: str, shape: tuple[int, ...]) -> tuple[str, int]:
    return {1: "f32", 4: "conv"}.get(len(shape), "f16"), 0


def store_weights(model: ir.Model, choose: Choose, source: Callable[[str], Origin]) -> list[StoredTensor]:
    """Rewrite `model` in place.

    Args:
        choose: storage kind and group of a tensor.
        source: checkpoint tensor and transform for an initializer's name.

    Returns:
        One record a checkpoint tensor, in graph order.
    """
    stored = []
    for value in [v for v in model.graph.initializers.values() if v.const_value is None]:
        shape = tuple(int(size) for size in value.shape)
        kind, group = choose(value.name, shape)
        origin, transform, eps = source(value.name)
        tensor = StoredTensor(
            name=value.name, kind=kind, shape=shape, source=origin, group=group, transform=transform, eps=eps
        )
        stored.append(tensor)
        _rewrite(model, value, tensor)
    model.opset_imports[functions.DOMAIN] = functions.VERSION
    return stored


def _rewrite(model: ir.Model, value: ir.Value, tensor: StoredTensor) -> None:
    if tensor.kind == "f32":
        return
    if tensor.kind in ("f16", "conv"):
        _store_dense(model, value, tensor)
        return
    parts = [_add_initializer(model, *part) for part in tensor.parts()]
    for user, index in list(value.uses()):
        _replace_user(model, user, index, parts, tensor)
    del model.graph.initializers[value.name]


def _add_initializer(model: ir.Model, name: str, dtype: str, shape: tuple[int, ...]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(TYPES[dtype]))
    model.graph.initializers[name] = value
    return value


def _store_dense(model: ir.Model, value: ir.Value, tensor: StoredTensor) -> None:
    ((_, dtype, shape),) = tensor.parts()
    value.shape, value.type = ir.Shape(shape), ir.TensorType(TYPES[dtype])
    users = list(value.uses())
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{tensor.name}/cast")
    nodes, dense = [cast], cast.outputs[0]
    if tensor.kind == "conv":
        back = ir.node("Transpose", [dense], {"perm": [0, 3, 1, 2]}, name=f"{tensor.name}/order")
        nodes.append(back)
        dense = back.outputs[0]
    _type(cast.outputs[0], shape)
    _type(dense, tensor.shape)
    for node, part in zip(nodes, ("cast", "order"), strict=False):
        node.outputs[0].name = f"{tensor.name}/{part}"
    model.graph.insert_before(model.graph.node(0), nodes)
    for user, index in users:
        user.replace_input_with(index, dense)


def _type(value: ir.Value, shape) -> None:
    value.shape = shape if isinstance(shape, ir.Shape) else ir.Shape(shape)
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _replace_user(model: ir.Model, user: ir.Node, index: int, parts: list[ir.Value], tensor: StoredTensor) -> None:
    """Replace what consumes a dense matrix by the operator that consumes its codes."""
    if user.op_type == "Transpose":
        for matmul, _ in list(user.outputs[0].uses()):
            _replace(model, matmul, _linear(model, matmul.inputs[0], parts, tensor))
        model.graph.remove(user, safe=True)
    elif user.op_type == "Gemm" and index == 1 and user.attributes["transB"].value == 1 and user.inputs[2:] == ():
        _replace(model, user, _linear(model, user.inputs[0], parts, tensor))
    elif user.op_type == "Gather" and index == 0 and tensor.kind.startswith("int"):
        function = functions.embedding_function(tensor.kind, tensor.group)
        model.functions.setdefault(function.identifier(), function)
        _replace(model, user, ir.node(function.name, [*parts, user.inputs[1]], domain=functions.DOMAIN))
    else:
        raise BadCheckpoint(f"{tensor.name}: a linear or an embedding was expected to use it, {user.op_type} does")


def _linear(model: ir.Model, x: ir.Value, parts: list[ir.Value], tensor: StoredTensor) -> ir.Node:
    function = functions.linear_function(tensor.kind, tensor.group)
    model.functions.setdefault(function.identifier(), function)
    return ir.node(function.name, [x, *parts], domain=functions.DOMAIN, name=tensor.name.removesuffix(".weight"))


def _replace(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    result, target = old.outputs[0], new.outputs[0]
    target.name, target.shape, target.type = result.name, result.shape, result.type
    model.graph.insert_before(old, new)
    if result.is_graph_output():
        position = list(model.graph.outputs).index(result)
        model.graph.outputs[position] = target
    for user, index in list(result.uses()):
        user.replace_input_with(index, target)
    result.name = None
    model.graph.remove(old, safe=True)
