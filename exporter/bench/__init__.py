"""`build.py bench`: times of every kernel on every shape of a model, of whole components, and of the adapter itself."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from exporter.bench.arguments import MODELS
from exporter.bench.engines import measure_engines
from exporter.bench.measure import Measured, Wanted, measure_kernels, measure_wholes, opened, write_site
from exporter.bench.peers import measure_peers, write_peers
from exporter.bench.shapes import shapes_of
from exporter.bench.table import lines_of
from exporter.browser import has_gpu

# (rows, outputs, inputs) of the matrix products that stand for all in a first look
PRODUCTS = {"software": (256, 3072, 3072), "hardware": (4608, 9216, 3072)}


def wanted(arguments: argparse.Namespace) -> Wanted:
    """What the command line asks for; without a GPU what a CPU can do in minutes."""
    software = arguments.adapter == "software" or (arguments.adapter == "auto" and not has_gpu())
    # On a CPU a step of klein-4B takes half an hour, a picture of pocket half a minute.
    models = tuple(arguments.model or (("matmul", "pocket") if software else MODELS))
    return Wanted(
        models,
        tuple(arguments.size or ([(256, 256)] if software else [(512, 512), (1024, 1024)])),
        arguments.product or PRODUCTS["software" if software else "hardware"],
        weights=arguments.weights,
        adapter=arguments.adapter,
        all_features=arguments.all_features,
        only=arguments.only,
        variant=arguments.variant,
        runs=max(1, arguments.runs),
        whole=not arguments.no_whole,
        peers=arguments.peers,
        engines=arguments.peers and not software,
    )


def run(wanted: Wanted, cache: Path) -> Measured:
    """Measure.

    Args:
        cache: a folder for the page and for what is slow to make.

    Raises:
        NoBrowser, BitbrushError: as exporter.bench.measure.opened, or a peer that cannot be installed.
    """
    shapes = shapes_of(wanted.models, wanted.weights, cache, wanted.product)
    site = cache / "site"
    write_site(site, shapes)
    if wanted.peers:
        write_peers(site, wanted.product)
    before = measure_engines(wanted.product, wanted.sizes, "before") if wanted.engines else []
    with opened(site, wanted.adapter, wanted.variant, wanted.all_features) as (page, facts):
        found = Measured(facts, page.evaluate("bench.ceilings()"))
        for model in wanted.models:
            measure_kernels(page, model, wanted, found)
            if wanted.whole and model != "matmul" and not (model == "klein-4b" and facts["software"]):
                measure_wholes(page, model, wanted, found)
        if wanted.peers:
            measure_peers(page, wanted, found)
    after = measure_engines(wanted.product, wanted.sizes, "after") if wanted.engines else []
    found.peers = [*before, *found.peers, *after]
    return found


def json_bytes(found: Measured) -> bytes:
    """All numbers as JSON."""
    return json.dumps(asdict(found), ensure_ascii=False, indent=1).encode() + b"\n"


__all__ = ["MODELS", "PRODUCTS", "Measured", "Wanted", "json_bytes", "lines_of", "run", "wanted"]
