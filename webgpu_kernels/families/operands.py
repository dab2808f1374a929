"""`to_f16`, `quantize`, `quantize_tiles`, `heads_to_f16` and `heads_to_int8`: operands as those variants of `linear`
and `attention` want them that do not take f32."""

from __future__ import annotations

import numpy as np

from webgpu_kernels.grid import folded, threads
from webgpu_kernels.operands import F16_MAX, SEGMENT, TILE, converted, converted_heads
from webgpu_kernels.registry import Binding, Case, Kernel, Numbers, Options, Variant, register
from webgpu_kernels.strided import gather, guarded

Arrays = dict[str, np.ndarray]

LANES = {"segment": 8, "row": 256}  # threads that share a scale
QUANTIZE_THREADS = 256
# Of all conversions: what they bind first, and where x lies.
_WORDS = Binding("x"), Binding("y", "read_write", "u32")
_PLACE = {"rows": "u32", "x_offset": "u32", "x_stride": "u32"}


def _rows(inputs: Arrays, constants: Numbers, uniforms: Numbers) -> np.ndarray:
    at = uniforms["x_offset"] + np.arange(uniforms["rows"])[:, None] * uniforms["x_stride"]
    return inputs["x"][at + np.arange(constants["COLUMNS"])]


def _outputs(found: Arrays) -> Arrays:
    """What the kernels write, of what `converted` and `converted_heads` give."""
    return {{"": "y", "_scales": "scales"}[name]: array.astype(np.float64) for name, array in found.items()}


def _to_f16(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    return _outputs(converted("f16", _rows(inputs, constants, uniforms)))


def _quantize(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    kind = "int8" if options["share"] == "segment" else "int8_rows"
    return _outputs(converted(kind, _rows(inputs, constants, uniforms)))


def _quantize_tiles(
    inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers
) -> Arrays:
    return _outputs(converted("int8_tiles", _rows(inputs, constants, uniforms)))


def _heads(inputs: Arrays, constants: Numbers, uniforms: Numbers) -> np.ndarray:
    sizes = uniforms["rows"], constants["HEADS"], constants["HEAD_SIZE"]
    return gather(inputs["x"], uniforms["x_offset"], sizes, (uniforms["x_stride"], uniforms["x_head_stride"], 1))


def _heads_to_f16(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    kind = "f16_heads" if options["order"] == "tokens" else "f16_heads_turned"
    return _outputs(converted_heads(kind, _heads(inputs, constants, uniforms)))


def _heads_to_int8(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    kind = "int8_heads" if options["order"] == "tokens" else "int8_heads_turned"
    return _outputs(converted_heads(kind, _heads(inputs, constants, uniforms)))


def _placed(values: np.ndarray, gap: int) -> tuple[np.ndarray, dict[str, int]]:
    """Rows with `gap` unused elements before each, and the uniforms that say so."""
    rows, columns = values.shape
    flat = np.concatenate([np.full((rows, gap), np.nan), values], axis=1).astype(np.float32).reshape(-1)
    return flat, {"rows": rows, "x_offset": gap, "x_stride": columns + gap}


def _to_f16_case(rows: int, columns: int, gap: int = 0) -> Case:
    rng = np.random.default_rng(rows + columns)
    values = rng.standard_normal((rows, columns)).astype(np.float16).astype(np.float32)
    values[0, :4] = 41_000, -70_000, 1e9, -F16_MAX
    x, uniforms = _placed(values, gap)
    return Case(f"{rows}x{columns}", {}, {"COLUMNS": columns}, uniforms, {"x": x}, {"y": rows * columns // 2})


def _near_codes(rows: int, segments: int, length: int, scale: float) -> np.ndarray:
    """Rows, f32[rows, segments * length], near multiples of their scales: no rounding depends on the last bit."""
    rng = np.random.default_rng(rows + segments * length)
    codes = rng.integers(-126, 127, (rows, segments, length)) + rng.uniform(-0.4, 0.4, (1, 1, length))
    codes[..., 5] = rng.choice((-127.0, 127.0), codes.shape[:2])
    values = (codes * rng.uniform(0.5, 1, (rows, segments, 1)) * scale / 127).reshape(rows, -1)
    values[-1] = 0
    return values


def _quantize_case(share: str, rows: int, columns: int, gap: int = 0, scale: float = 1.0) -> Case:
    length = SEGMENT if share == "segment" else columns
    x, uniforms = _placed(_near_codes(rows, columns // length, length, scale), gap)
    outputs = {"y": rows * columns // 4, "scales": rows * columns // length * 2}
    name = f"{share}-{rows}x{columns}"
    return Case(name, {"share": share}, {"COLUMNS": columns}, uniforms, {"x": x}, outputs, error=1e-6)


def _quantize_tiles_case(rows: int, columns: int, gap: int = 0, scale: float = 1.0) -> Case:
    x, uniforms = _placed(_near_codes(rows, 1, columns, scale), gap)
    filled = -(-rows // TILE) * TILE
    outputs = {"y": filled * columns // 4, "scales": filled}
    return Case(f"{rows}x{columns}", {}, {"COLUMNS": columns}, uniforms, {"x": x}, outputs, error=1e-6)


def _heads_case(order: str, values: np.ndarray, outputs: Numbers, error: float = 1e-5) -> Case:
    """Values, f32[tokens, heads, size], with gaps between heads and tokens."""
    tokens, heads, size = values.shape
    strides = (heads * (size + 4) + 8, size + 4, 1)
    uniforms = {"rows": tokens, "x_offset": 8, "x_stride": strides[0], "x_head_stride": strides[1]}
    x = guarded(8 + tokens * strides[0], 8, strides, values)
    constants = {"HEADS": heads, "HEAD_SIZE": size}
    return Case(f"{order}-{tokens}x{heads}x{size}", {"order": order}, constants, uniforms, {"x": x}, outputs, error)


def _heads_to_f16_case(order: str, tokens: int, heads: int, size: int) -> Case:
    values = np.random.default_rng(tokens).standard_normal((tokens, heads, size)).astype(np.float16)
    values[0, 0, :4] = 41_000, np.inf, -np.inf, -F16_MAX
    rows = tokens if order == "tokens" else -(-tokens // 8) * 8
    return _heads_case(order, values.astype(np.float32).clip(-1e9, 1e9), {"y": rows * heads * size // 2})


def _heads_to_int8_case(order: str, tokens: int, heads: int, size: int) -> Case:
    """Values lie near multiples of their scale, as in `_quantize_case`."""
    rng = np.random.default_rng(tokens)
    codes = rng.integers(-126, 127, (tokens, heads, size)) + rng.uniform(-0.4, 0.4, (tokens, heads, size))
    if order == "tokens":
        codes[..., 5] = rng.choice((-127.0, 127.0), (tokens, heads))
        values = codes * rng.uniform(0.5, 41_000, (tokens, heads, 1)) / 127
        values[tokens // 2] = 0
    else:
        codes[::TILE] = rng.choice((-127.0, 127.0), codes[::TILE].shape)
        tiles = -(-tokens // TILE)
        values = codes * np.repeat(rng.uniform(0.5, 41_000, (tiles, heads, size)), TILE, axis=0)[:tokens] / 127
        values[..., size // 2] = 0
    filled = -(-tokens // TILE) * TILE
    scales = filled * heads if order == "tokens" else filled // TILE * heads * size * 2
    outputs = {"y": filled * heads * size // 4, "scales": scales}
    return _heads_case(order, values.astype(np.float32), outputs, error=1e-6)


register(
    Kernel(
        name="to_f16",
        bindings=_WORDS,
        constants={"COLUMNS": "u32"},
        uniforms=_PLACE,
        options={},
        variants=(
            Variant(
                "f32",
                "to_f16.wgsl",
                threads(["mul", "rows", ["floor_div", "COLUMNS", 8]]),
                elements=lambda options: {"x": "vec4f", "y": "vec4u"},
            ),
        ),
        reference=_to_f16,
        cases=lambda: [_to_f16_case(1, 32), _to_f16_case(77, 160, gap=4)],
    )
)

register(
    Kernel(
        name="quantize",
        bindings=(*_WORDS, Binding("scales", "read_write")),
        constants={"COLUMNS": "u32"},
        uniforms=_PLACE,
        options={"share": ("segment", "row")},
        variants=(
            Variant(
                "f32",
                "quantize.wgsl",
                lambda options: (
                    folded(["ceil_div", ["mul", "rows", ["floor_div", "COLUMNS", SEGMENT]], QUANTIZE_THREADS // 8])
                    if options["share"] == "segment"
                    else folded("rows")
                ),
                context={"threads": QUANTIZE_THREADS, "lanes": LANES, "segment": SEGMENT},
                elements=lambda options: {"x": "vec4f", "y": "vec4u", "scales": "vec2f"},
            ),
        ),
        reference=_quantize,
        cases=lambda: [
            _quantize_case("segment", 1, 128),
            _quantize_case("segment", 19, 384, gap=4, scale=41_000),
            _quantize_case("row", 3, 64, gap=8),
            _quantize_case("row", 5, 4224, scale=41_000),
        ],
    )
)

register(
    Kernel(
        name="quantize_tiles",
        bindings=(*_WORDS, Binding("scales", "read_write")),
        constants={"COLUMNS": "u32"},
        uniforms=_PLACE,
        options={},
        variants=(
            Variant(
                "f32",
                "quantize_tiles.wgsl",
                folded(["mul", ["ceil_div", "rows", TILE], TILE // 8]),
                context={"tile": TILE},
                elements=lambda options: {"x": "vec4f", "y": "vec4u"},
            ),
        ),
        reference=_quantize_tiles,
        cases=lambda: [
            _quantize_tiles_case(3, 64, gap=8),
            _quantize_tiles_case(133, 1040, gap=4, scale=41_000),
        ],
    )
)

register(
    Kernel(
        name="heads_to_f16",
        bindings=_WORDS,
        constants={"HEADS": "u32", "HEAD_SIZE": "u32"},
        uniforms={**_PLACE, "x_head_stride": "u32"},
        options={"order": ("tokens", "channels")},
        variants=(
            Variant(
                "f32",
                "heads_to_f16.wgsl",
                lambda options: (
                    threads(["mul", "rows", ["mul", "HEADS", ["floor_div", "HEAD_SIZE", 8]]])
                    if options["order"] == "tokens"
                    else threads(["mul", ["ceil_div", "rows", 8], ["mul", "HEADS", ["floor_div", "HEAD_SIZE", 4]]])
                ),
                elements=lambda options: {"x": "vec4f", "y": "vec4u"},
            ),
        ),
        reference=_heads_to_f16,
        cases=lambda: [
            _heads_to_f16_case("tokens", 5, 3, 128),
            _heads_to_f16_case("tokens", 77, 1, 64),
            _heads_to_f16_case("channels", 1, 1, 16),
            _heads_to_f16_case("channels", 77, 3, 128),
        ],
    )
)

register(
    Kernel(
        name="heads_to_int8",
        bindings=(*_WORDS, Binding("scales", "read_write")),
        constants={"HEADS": "u32", "HEAD_SIZE": "u32"},
        uniforms={**_PLACE, "x_head_stride": "u32"},
        options={"order": ("tokens", "channels")},
        variants=(
            Variant(
                "f32",
                "heads_to_int8.wgsl",
                folded(["mul", ["ceil_div", "rows", TILE], "HEADS"]),
                context={"tile": TILE},
                elements=lambda options: (
                    {"x": "vec4f", "y": "vec4u", "scales": "f32" if options["order"] == "tokens" else "vec4f"}
                ),
            ),
        ),
        reference=_heads_to_int8,
        cases=lambda: [
            _heads_to_int8_case("tokens", 5, 3, 128),
            _heads_to_int8_case("tokens", 133, 2, 64),
            _heads_to_int8_case("channels", 1, 1, 16),
            _heads_to_int8_case("channels", 133, 3, 128),
        ],
    )
)
