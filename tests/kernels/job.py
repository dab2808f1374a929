"""A test case -> a job for run_case.js, and its answer -> a verdict.

Every buffer is longer than its array and the rest is NaN, so that a read outside shows in the result.
Outputs start as NaN, or as what the case gives for one that the kernel adds to. They are followed (and,
before their binding's start, preceded) by guard bands that must keep their bits: elements that the
reference gives as NaN must not be written, all others must.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from exporter.expressions import evaluate
from webgpu_kernels.operands import TILE, converted_inputs, operand_sizes
from webgpu_kernels.registry import DTYPES, Case, Kernel, Variant
from webgpu_kernels.render import Rendered
from webgpu_kernels.strided import indices

FILL = np.uint32(0x7FC00000)  # a quiet NaN; as u32 it is no index that any case could use
GUARD = 64  # elements of 4 bytes; a binding's offset must be a multiple of 256 bytes


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _check_names(kind: str, expected: set[str], found: set[str], label: str) -> None:
    if expected != found:
        raise ValueError(f"{label}: expected {kind} {sorted(expected)}, the case gives {sorted(found)}")


def _padded(count: int) -> int:
    """Element count rounded up to 16 bytes."""
    return -(-count // 4) * 4


def _words(name: str, array: np.ndarray, dtype: str, label: str) -> np.ndarray:
    if array.dtype != DTYPES[dtype]:
        raise ValueError(f"{label}: input {name} must be {DTYPES[dtype].__name__}, is {array.dtype}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint32)


def _uniform_bytes(kernel: Kernel, case: Case) -> bytes:
    parts = [np.array(case.uniforms[name], DTYPES[kind]).tobytes() for name, kind in kernel.uniforms.items()]
    data = b"".join(parts)
    return data + bytes(-len(data) % 16)


def make_job(kernel: Kernel, rendered: Rendered, case: Case) -> dict[str, Any]:
    """The JSON job of one case; see the typedef in run_case.js.

    Raises:
        ValueError: the case does not fit the kernel's record.
    """
    label = f"{kernel.name}, variant {rendered.variant.name}, case {case.name}"
    present = kernel.present_bindings(case.options)
    _check_names("constants", set(kernel.constants), set(case.constants), label)
    _check_names("uniforms", set(kernel.uniforms), set(case.uniforms), label)
    written = {b.name for b in present if b.access != "read"}
    _check_names("inputs", {b.name for b in present} - written, set(case.inputs) - written, label)
    _check_names("outputs", written, set(case.outputs), label)
    converts = rendered.variant.converts
    given = converted_inputs(converts, case.inputs, case.uniforms, case.constants)
    bindings = []
    for binding in rendered.bindings:
        if binding.name in given:
            words = _words(binding.name, given[binding.name], binding.dtype, label)
        else:
            words = np.full(case.outputs[binding.name], FILL)
        data = np.full(GUARD + _padded(len(words)) + GUARD, FILL)
        data[GUARD : GUARD + len(words)] = words
        place = {"offset": GUARD * 4, "size": (len(data) - GUARD) * 4}
        bindings.append({"name": binding.name, "access": binding.access, "data": _base64(data), **place})
    integers = {k: v for k, v in rendered.options.items() if isinstance(v, int) and not isinstance(v, bool)}
    symbols = {**integers, **case.constants, **case.uniforms}
    groups = [evaluate(expression, symbols) for expression in rendered.groups]
    for count in groups:
        if not isinstance(count, int) or not 1 <= count <= 65_535:
            raise ValueError(f"{label}: workgroup counts must be whole numbers in 1..65535, found {groups}")
    return {
        "label": label,
        "file": rendered.file,
        "wgsl": rendered.wgsl,
        "features": list(rendered.variant.features),
        "limits": rendered.limits,
        "constants": dict(case.constants),
        "bindings": bindings,
        "uniforms": base64.b64encode(_uniform_bytes(kernel, case)).decode("ascii"),
        "groups": groups,
    }


def rounded_inputs(variant: Variant, case: Case) -> dict[str, np.ndarray]:
    """`case.inputs` with heads that the variant takes as int8 in place of those that they were rounded from.

    Where the softmax picks single keys, rounding a score changes the output more than any error of the kernel.
    """
    inputs = dict(case.inputs)
    given = converted_inputs(variant.converts, case.inputs, case.uniforms, case.constants)
    for name, kind in variant.converts.items():
        if not kind.startswith("int8_heads"):
            continue
        tokens, heads, size = sizes = operand_sizes(name, case.uniforms, case.constants)
        codes = given[name].view(np.int8)
        if kind == "int8_heads":
            tiles = codes.reshape(-1, heads, size // 4, TILE, 4).transpose(0, 3, 1, 2, 4).reshape(-1, TILE, heads, size)
            scales = given[f"{name}_scales"].reshape(-1, heads, TILE).swapaxes(1, 2)[..., None]
        else:
            tiles = codes.reshape(-1, heads, TILE // 4, size, 4).transpose(0, 2, 4, 1, 3).reshape(-1, TILE, heads, size)
            scales = given[f"{name}_scales"].reshape(-1, 1, heads, 2, size)[..., 0, :]
        offset, *strides = (case.uniforms[f"{name}_{part}"] for part in ("offset", "stride", "head_stride"))
        inputs[name] = inputs[name].copy()
        inputs[name][indices(offset, sizes, (*strides, 1))] = (tiles * scales).reshape(-1, heads, size)[:tokens]
    return inputs


def _complain(label: str, what: str, where: np.ndarray) -> None:
    if len(where):
        raise AssertionError(f"{label}: {len(where)} elements {what}, the first at {where[:5].tolist()}")


def check_output(label: str, data: bytes, dtype: str, expected: np.ndarray, bound: float) -> float:
    """Compare a buffer that came back with the reference; return the normalized error.

    Args:
        data: the whole buffer, guard bands included.
        expected: float64[elements], NaN where the kernel must not write.
        bound: the greatest allowed ‖out − expected‖ / ‖expected‖; u32 outputs must be equal.

    Raises:
        AssertionError: names what is wrong and the first places.
    """
    words = np.frombuffer(data, np.uint32)
    expected = np.asarray(expected, np.float64).reshape(-1)
    inside = words[GUARD : GUARD + len(expected)]
    outside = np.concatenate([words[:GUARD], words[GUARD + len(expected) :]])
    _complain(label, "of the guard bands were overwritten", np.flatnonzero(outside != FILL))
    keep = np.isnan(expected)
    _complain(label, "were written that must not be", np.flatnonzero(keep & (inside != FILL)))
    _complain(label, "were not written", np.flatnonzero(~keep & (inside == FILL)))
    if keep.all():
        raise AssertionError(f"{label}: the reference expects no element at all")
    out = inside.view(DTYPES[dtype])[~keep].astype(np.float64)
    wanted = expected[~keep]
    if dtype == "u32":
        _complain(label, "differ", np.flatnonzero(out != wanted))
        return 0.0
    _complain(label, "are not finite", np.flatnonzero(~np.isfinite(out) & np.isfinite(wanted)))
    norm = np.linalg.norm(wanted)
    error = float(np.linalg.norm(out - wanted) / (norm if norm else 1.0))
    if not error <= bound:
        worst = int(np.argmax(np.abs(out - wanted)))
        raise AssertionError(
            f"{label}: normalized error {error:.3g} exceeds {bound:.3g}; worst at written element "
            f"{worst}: {out[worst]:.8g}, expected {wanted[worst]:.8g}"
        )
    return error
