"""`conv2d` with other numbers in its variants' contexts than those that ship, as a sweep on a GPU tries them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.kernels.emulated import CONV_TILES, emulated_conv
from tests.kernels.job import check_output, make_job
from tests.kernels.runners import BrowserRunner, NodeRunner
from webgpu_kernels import Case, all_kernels, render

CONV = all_kernels()["conv2d"]
MATRIX = next(variant for variant in CONV.variants if variant.name == "matrix_f16")
CASES = {case.name: case for case in CONV.cases()}
MATRIX_CASES = [c for c in CASES.values() if MATRIX.serves(CONV.complete(c.options)) and MATRIX.fits(c.constants)]
STAGED_TILES = (
    {"tile_rows": 8, "tile_columns": 64, "depth": 16, "stages": 1, "prefetch": False},
    {"tile_rows": 4, "tile_columns": 128, "depth": 4, "stages": 2, "prefetch": False},
    {"tile_rows": 4, "tile_columns": 192, "depth": 8, "stages": 1, "prefetch": True},
)


def _text(tile: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in tile.items())


def _check(case: Case, outputs: Mapping[str, bytes], error: float) -> None:
    expected = CONV.reference(case.inputs, CONV.complete(case.options), case.constants, case.uniforms, case.outputs)
    check_output(case.name, outputs["y"], "f32", expected["y"], error)


@pytest.mark.parametrize("tile", CONV_TILES, ids=_text)
@pytest.mark.parametrize("case", MATRIX_CASES, ids=lambda case: case.name)
def test_matrix_variant_is_right_with_every_tile(case: Case, tile: Mapping[str, Any], node_runner: NodeRunner) -> None:
    rendered = render("conv2d", case.options, "matrix_f16")
    job = make_job(CONV, rendered, case)
    _check(case, node_runner.run(emulated_conv(rendered, case, job, tile)), MATRIX.error)


@pytest.mark.parametrize("tile", STAGED_TILES, ids=_text)
@pytest.mark.parametrize(
    "name", ["f16-13x35-64to160-k3-affine_silu-add-rows3+9", "f16-6x16-64to72-k1-plain", "f32-7x11-8to8-k5-plain"]
)
def test_staged_variant_is_right_with_every_tile(
    name: str, tile: Mapping[str, Any], browser_runner: BrowserRunner
) -> None:
    case = CASES[name]
    job = make_job(CONV, render("conv2d", case.options, "f32_staged", tile), case)
    _check(case, browser_runner.run(job), case.error)
