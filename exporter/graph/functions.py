"""The operators of the domain `bitbrush` as ONNX functions made of standard operators.

Every packed weight enters the graph through one of these, so stock onnxruntime computes what the
shaders compute. Layouts of codes, scales and offsets: DESIGN.md §3.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

DOMAIN = "bitbrush"
VERSION = 1

# codes u32[N, words] -> grouped f32[N, K/group, group]
_UNPACK = """
    zero = Constant <value_int: int = 0> ()
    limit = Constant <value_int: int = 32> ()
    step = Constant <value_int: int = {bits}> ()
    places = Range (zero, limit, step)
    shifts = Cast <to: int = 12> (places)
    mask = Constant <value: tensor = uint32 {{{mask}}}> ()
    last = Constant <value_ints: ints = [2]> ()
    words = Unsqueeze ({codes}, last)
    shifted = BitShift <direction: string = "RIGHT"> (words, shifts)
    kept = BitwiseAnd (shifted, mask)
    numbers = Cast <to: int = 1> (kept)
    grouped_shape = Constant <value_ints: ints = [0, -1, {group}]> ()
    grouped = Reshape (numbers, grouped_shape)
"""
# trits u8[units, 16] -> grouped f32[N, K/128, 128]; the scales' shape says where the last unit's padding begins
_UNPACK_TRITS = """
    last = Constant <value_ints: ints = [2]> ()
    bytes = Cast <to: int = 6> (trits)
    one_each = Constant <value_ints: ints = [-1, 1]> ()
    column = Reshape (bytes, one_each)
    powers = Constant <value: tensor = int32[5] {1, 3, 9, 27, 81}> ()
    three = Constant <value: tensor = int32 {3}> ()
    quotients = Div (column, powers)
    codes = Mod (quotients, three)
    flat = Constant <value_ints: ints = [-1]> ()
    line = Reshape (codes, flat)
    group = Constant <value_ints: ints = [128]> ()
    groups = Size (scales)
    count = Mul (groups, group)
    first = Constant <value_ints: ints = [0]> ()
    kept = Slice (line, first, count)
    numbers = Cast <to: int = 1> (kept)
    scales_shape = Shape (scales)
    grouped_shape = Concat <axis: int = 0> (scales_shape, group)
    grouped = Reshape (numbers, grouped_shape)
"""
_SCALE = """
    scales32 = Cast <to: int = 1> ({scales})
    scale = Unsqueeze (scales32, last)
"""
_SIGNED = """
    factor = Constant <value_float: float = {factor}> ()
    shift = Constant <value_float: float = 1.0> ()
    stretched = Mul (grouped, factor)
    levels = Sub (stretched, shift)
    values = Mul (levels, scale)
"""
_AFFINE = """
    offsets32 = Cast <to: int = 1> ({offsets})
    offset = Unsqueeze (offsets32, last)
    scaled = Mul (grouped, scale)
    values = Add (scaled, offset)
"""
_WEIGHT = """
    flat_shape = Constant <value_ints: ints = [0, -1]> ()
    weight = Reshape (values, flat_shape)
"""
_MATMUL = """
    transposed = Transpose <perm: ints = [1, 0]> (weight)
    y = MatMul (x, transposed)
"""
_GATHER = """
    some_codes = Gather (codes, flat_ids)
    some_scales = Gather (scales, flat_ids)
    some_offsets = Gather (offsets, flat_ids)
"""

BITS = {"binary": 1, "int4": 4, "int8": 8}


def linear_name(kind: str, group: int) -> str:
    """Operator of y = x · Wᵀ for a kind of weight; affine kinds carry their group size in the name."""
    return f"Linear{kind.capitalize()}" + ("" if kind in ("binary", "ternary") else f"G{group}")


def embedding_name(kind: str, group: int) -> str:
    return f"Embedding{kind.capitalize()}G{group}"


def _function(text: str) -> ir.Function:
    header = f'<opset_import: ["" : 23], domain: "{DOMAIN}">\n'
    return ir.serde.deserialize_function(onnx.parser.parse_function(header + text))


def _unpack(kind: str, codes: str, group: int) -> str:
    return _UNPACK.format(bits=BITS[kind], mask=2 ** BITS[kind] - 1, codes=codes, group=group)


def linear_function(kind: str, group: int) -> ir.Function:
    """(x f32[…, K], codes or trits, scales[, offsets]) -> f32[…, N]."""
    affine = kind in ("int4", "int8")
    if kind == "ternary":
        operands, body = "x, trits, scales", _UNPACK_TRITS
    else:
        operands = "x, codes, scales, offsets" if affine else "x, codes, scales"
        body = _unpack(kind, "codes", group)
    body += _SCALE.format(scales="scales")
    body += _AFFINE.format(offsets="offsets") if affine else _SIGNED.format(factor="2.0" if kind == "binary" else "1.0")
    return _function(f"{linear_name(kind, group)} ({operands}) => (y)\n{{{body}{_WEIGHT}{_MATMUL}}}")


def embedding_function(kind: str, group: int) -> ir.Function:
    """(codes, scales, offsets, ids int64[1, tokens]) -> rows of the table, f32[1, tokens, K]."""
    body = "\n    flat = Constant <value_ints: ints = [-1]> ()\n    flat_ids = Reshape (ids, flat)" + _GATHER
    body += _unpack(kind, "some_codes", group) + _SCALE.format(scales="some_scales")
    body += _AFFINE.format(offsets="some_offsets") + _WEIGHT
    body += "    batch = Constant <value_ints: ints = [0]> ()\n    y = Unsqueeze (weight, batch)\n"
    return _function(f"{embedding_name(kind, group)} (codes, scales, offsets, ids) => (y)\n{{{body}}}")
