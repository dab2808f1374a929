"""`compare`: how far a kernel's output is from another's, for the choice of variants (site/js/runtime/choice.js)."""

from __future__ import annotations

import numpy as np

from webgpu_kernels.registry import Binding, Case, Kernel, Numbers, Options, Variant, register

Arrays = dict[str, np.ndarray]

SHARES = 256  # workgroups


def _compare(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    count = uniforms["elements"]
    found, expected = (inputs[name][:count] for name in ("found", "expected"))
    found = found.view(np.float32).astype(np.float64)
    is_number = np.isfinite(found)
    difference = np.where(is_number, found, expected) - expected.astype(np.float64)
    share = np.arange(count) // 256 % SHARES
    sums = [difference**2, expected.astype(np.float64) ** 2, ~is_number]
    return {"y": np.stack([np.bincount(share, one, SHARES) for one in sums], axis=1).reshape(-1)}


def _case(count: int, unused: int = 0) -> Case:
    rng = np.random.default_rng(count)
    expected = rng.standard_normal(count + unused).astype(np.float32)
    found = expected + rng.standard_normal(count + unused).astype(np.float32) / 8
    places = np.arange(0, count, max(1, count // 7))
    found[places] = np.resize(np.array([np.inf, np.nan, -np.inf], np.float32), places.size)
    inputs = {"found": found.view(np.uint32), "expected": expected}
    return Case(f"{count}", {}, {}, {"elements": count}, inputs, {"y": 3 * SHARES})


register(
    Kernel(
        name="compare",
        bindings=(Binding("found", dtype="u32"), Binding("expected"), Binding("y", "read_write")),
        constants={},
        uniforms={"elements": "u32"},
        options={},
        variants=(Variant("f32", "compare.wgsl", (SHARES, 1, 1), context={"shares": SHARES}),),
        reference=_compare,
        cases=lambda: [_case(1), _case(300, unused=40), _case(70_001)],
    )
)
