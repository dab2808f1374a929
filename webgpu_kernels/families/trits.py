"""Ternary weights on their way to the GPU: from five trits a byte to 2-bit codes (DESIGN.md §3)."""

from __future__ import annotations

import numpy as np

from webgpu_kernels.grid import threads
from webgpu_kernels.registry import Binding, Case, Kernel, Numbers, Options, Variant, register

Arrays = dict[str, np.ndarray]


def _expand_trits(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    numbers = inputs["trits"].view(np.uint8).astype(np.uint64)
    codes = np.stack([numbers, numbers // 3, numbers // 9, numbers // 27, numbers // 81], axis=1)
    codes[:, :4] %= 3  # not the last: it is 3 for a byte from 243 on
    words = np.sum(codes.reshape(-1, 16) << np.arange(0, 32, 2, dtype=np.uint64), axis=1)
    out = np.full(outputs["codes"], np.nan)
    first, count = uniforms["codes_offset"], uniforms["words"]
    out[first : first + count] = words[:count]
    return {"codes": out}


def _expand_trits_cases() -> list[Case]:
    def case(name: str, words: int, codes_offset: int, trits: np.ndarray) -> Case:
        uniforms = {"words": words, "codes_offset": codes_offset}
        return Case(name, {}, {}, uniforms, {"trits": trits.view(np.uint32)}, {"codes": codes_offset + words + 3})

    def random(units: int) -> np.ndarray:
        return np.random.default_rng(units).integers(0, 243, 16 * units, np.uint8)

    return [
        case("one-unit", 5, 0, random(1)),
        case("one-word", 1, 7, random(1)),
        case("odd-tail", 5 * 300 - 2, 3, random(300)),
        case("many-units", 5 * 4096, 64, random(4096)),
        case("every-byte", 80, 0, np.arange(256, dtype=np.uint8)),
    ]


register(
    Kernel(
        name="expand_trits",
        bindings=(Binding("trits", dtype="u32"), Binding("codes", "read_write", "u32")),
        constants={},
        uniforms={"words": "u32", "codes_offset": "u32"},
        options={},
        variants=(
            Variant(
                "u32",
                "expand_trits.wgsl",
                threads(["ceil_div", "words", 5]),
                elements=lambda options: {"trits": "vec4u"},
            ),
        ),
        reference=_expand_trits,
        cases=_expand_trits_cases,
    )
)
