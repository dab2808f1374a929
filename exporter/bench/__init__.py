"""`build.py bench`: times of every kernel on every shape of a model, of whole components, and of the adapter itself."""

from __future__ import annotations

from pathlib import Path

from exporter.bench.measure import Measured, Wanted, is_software, measure_kernels, measure_wholes, opened, write_site
from exporter.bench.shapes import MODELS, shapes_of
from exporter.bench.table import lines_of

# (rows, outputs, inputs) of the matrix products that stand for all in a first look
PRODUCTS = {"software": (256, 3072, 3072), "hardware": (4608, 9216, 3072)}


def run(wanted: Wanted, cache: Path) -> Measured:
    """Measure.

    Args:
        cache: a folder for the page and for what is slow to make.

    Raises:
        BadArguments: a model that is not known.
        NoBrowser, BitbrushError: as exporter.bench.measure.opened.
    """
    shapes = shapes_of(wanted.models, wanted.weights, cache, wanted.product)
    site = cache / "site"
    write_site(site, shapes)
    with opened(site, wanted.adapter, wanted.variant, wanted.all_features) as (page, facts):
        found = Measured(facts, page.evaluate("bench.ceilings()"))
        for model in wanted.models:
            measure_kernels(page, model, wanted, found)
            if wanted.whole and model != "matmul" and not (model == "klein-4b" and is_software(facts)):
                measure_wholes(page, model, wanted, found)
    return found


__all__ = ["MODELS", "PRODUCTS", "Measured", "Wanted", "lines_of", "run"]
