"""Pictures in row bands: the same picture however small the bands, and the memory that they are for."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from exporter.bundle import Bundle
from exporter.expressions import evaluate
from exporter.lower import lower_bundle
from exporter.lower.bands import add, ceil_div, divisor, free_symbols, mul, sub
from tests.interpreter import run_plan, steps
from tests.reference import relative_error

ROWS, COLUMNS = 3, 5
WHOLE = 2**40
# Of the widest pictures a row has 80 columns and 32 channels; bands of 1 row, odd remainders, one band.
SIZES = {"one-row": 1, "few-rows": 13_000, "many-rows": 40_000, "whole": WHOLE}


@pytest.fixture(scope="module", params=["two-heads-ternary", "deep"])
def decoder(request, exported):
    """Plan, tensors, latents, and the picture that onnxruntime makes of them."""
    bundle = exported(request.param)
    latents = np.random.default_rng(0).standard_normal((1, ROWS, COLUMNS, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(bundle / "decoder.onnx", providers=["CPUExecutionProvider"])
    (image,) = session.run(None, {"latents": latents})
    opened = Bundle(bundle)
    return lower_bundle(bundle)["decoder"], lambda name: opened.tensor("decoder", name), latents, image


def _symbols(band: int, held: int) -> dict[str, int]:
    return {"rows": ROWS, "columns": COLUMNS, "band_elements": band, "held_elements": held}


@pytest.mark.parametrize(("band", "held"), itertools.product(SIZES, (1, WHOLE)))
def test_bands_of_any_size_give_the_same_picture(decoder, band, held):
    plan, tensor, latents, image = decoder
    found = run_plan(plan, tensor, _symbols(SIZES[band], held), {"latents": latents})
    assert relative_error(found["image"], image[0].transpose(1, 2, 0)) < 1e-5
