"""Every registered kernel, every variant, every case, on a WebGPU adapter against the numpy reference."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.kernels.emulated import CONV_TILES, emulated, emulated_attention, emulated_conv, narrow
from tests.kernels.job import FILL, GUARD, check_output, make_job, rounded_inputs
from tests.kernels.runners import BrowserRunner, NodeRunner
from webgpu_kernels import Case, Kernel, Rendered, Variant, all_kernels, render_all

KERNELS = all_kernels()


@cache
def _cases(name: str) -> dict[str, Case]:
    cases = KERNELS[name].cases()
    by_name = {case.name: case for case in cases}
    if len(by_name) != len(cases):
        raise ValueError(f"kernel {name} has two cases of one name")
    return by_name


def _runs() -> list[Any]:
    return [
        pytest.param(kernel.name, variant, name, id=f"{kernel.name}-{variant.name}-{name}")
        for kernel in KERNELS.values()
        for variant in kernel.variants
        for name, case in _cases(kernel.name).items()
        if variant.serves(kernel.complete(case.options)) and variant.fits(case.constants)
    ]


def _run(
    rendered: Rendered, case: Case, job: dict[str, Any], browser: BrowserRunner, request: pytest.FixtureRequest
) -> tuple[Case, dict[str, bytes]]:
    """In the browser where its adapter is able, else in Node, with emulated matrices where that has none; it fails
    where neither is able. Answers with the case that was run: emulation may want a narrower one."""
    variant = rendered.variant
    if browser.can(variant.features, dict(variant.limits)):
        return case, browser.run(job)
    node: NodeRunner = request.getfixturevalue("node_runner")
    if node.can(variant.features, dict(variant.limits)):
        return case, node.run(job)
    if variant.matrix and variant.template == "linear_matrix.wgsl":
        return case, node.run(emulated(rendered, case, job))
    if variant.matrix and variant.template == "attention_matrix.wgsl":
        case = narrow(case)
        return case, node.run(emulated_attention(case, make_job(KERNELS[rendered.kernel], rendered, case)))
    if variant.matrix and variant.template == "conv2d_matrix.wgsl":
        return case, node.run(emulated_conv(rendered, case, job, CONV_TILES[0]))
    raise AssertionError(f"no adapter for variant {variant.name}: it needs {variant.features} {variant.limits}")


def _bound(case: Case, variant: Variant) -> float:
    return case.error if variant.error is None else max(case.error, variant.error)


def _reference(kernel: Kernel, variant: Variant, case: Case) -> dict[str, np.ndarray]:
    options = kernel.complete(case.options)
    return kernel.reference(rounded_inputs(variant, case), options, case.constants, case.uniforms, case.outputs)


@pytest.mark.parametrize(("name", "variant", "case_name"), _runs())
def test_kernel_matches_reference(
    name: str, variant: Variant, case_name: str, browser_runner: BrowserRunner, request: pytest.FixtureRequest
) -> None:
    kernel = KERNELS[name]
    case = _cases(name)[case_name]
    rendered = next(r for r in render_all(name, case.options) if r.variant.name == variant.name)
    job = make_job(kernel, rendered, case)
    case, buffers = _run(rendered, case, job, browser_runner, request)
    expected = _reference(kernel, variant, case)
    assert set(buffers) == set(expected) == set(case.outputs)
    dtypes = {binding.name: binding.dtype for binding in kernel.bindings}
    for output, data in buffers.items():
        if np.size(expected[output]) != case.outputs[output]:
            raise ValueError(
                f"{job['label']}: reference of {output} has {np.size(expected[output])} elements, "
                f"the case says {case.outputs[output]}"
            )
        check_output(f"{job['label']}, output {output}", data, dtypes[output], expected[output], _bound(case, variant))


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_has_cases_for_every_option_value(name: str) -> None:
    kernel = KERNELS[name]
    cases = _cases(name).values()
    assert cases, f"kernel {name} has no cases"
    for option, values in kernel.options.items():
        tried = {kernel.complete(case.options)[option] for case in cases}
        assert tried == set(values), f"kernel {name}, option {option}: no case for {set(values) - tried}"


@pytest.mark.parametrize("name", KERNELS)
def test_first_variant_needs_nothing_beyond_core_webgpu(name: str) -> None:
    baseline = KERNELS[name].variants[0]
    assert not baseline.features and not baseline.limits


@pytest.mark.parametrize("name", KERNELS)
def test_variants_that_round_operands_are_known_as_such_to_the_runtime(name: str) -> None:
    """`roundsOperands` of pipelines.js keeps them from the encoder by what they need."""
    for variant in KERNELS[name].variants:
        known = "shader-f16" in variant.features or bool(variant.converts)
        assert known == (variant.error is not None), variant.name


def _buffer(values: list[float]) -> np.ndarray:
    words = np.full(2 * GUARD + 4, FILL)
    words[GUARD : GUARD + len(values)] = np.array(values, np.float32).view(np.uint32)
    return words


def test_verdict_accepts_a_right_buffer() -> None:
    data = _buffer([1, 2, np.nan, 4])
    data[GUARD + 2] = FILL
    assert check_output("t", data.tobytes(), "f32", np.array([1, 2, np.nan, 4]), 1e-6) == 0


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (GUARD - 1, 0, "guard"),
        (GUARD + 4, 0, "guard"),
        (GUARD + 2, 0, "must not be"),
        (GUARD + 1, FILL, "not written"),
        (GUARD + 1, np.float32(2.1).view(np.uint32), "exceeds"),
        (GUARD + 1, np.float32(np.inf).view(np.uint32), "not finite"),
        (GUARD + 1, 0x7FC00001, "not finite"),
    ],
)
def test_verdict_refuses_a_wrong_buffer(place: int, value: int, message: str) -> None:
    data = _buffer([1, 2, np.nan, 4])
    data[GUARD + 2] = FILL
    data[place] = value
    with pytest.raises(AssertionError, match=message):
        check_output("t", data.tobytes(), "f32", np.array([1, 2, np.nan, 4]), 1e-6)


def test_shader_errors_name_kernel_line_and_source(browser_runner: BrowserRunner) -> None:
    job = {"label": "broken, variant b", "file": "broken", "wgsl": "\nlet x = nonsense;\n", "features": [],
           "limits": {}, "constants": {}, "bindings": [], "uniforms": "AAAAAA==", "groups": [1, 1, 1]}  # fmt: skip
    with pytest.raises(AssertionError, match=r"broken, variant b: shader does not compile\n2:.*\n.*let x = nonsense;"):
        browser_runner.run(job)
