"""Drives the page that measures (site/js/bench/) in headless Chrome."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page

from exporter.bench.shapes import COMPONENTS, Shapes
from exporter.browser import FEATURE_FLAGS, FINE_CLOCK, launch
from exporter.errors import BitbrushError, NoBrowser
from exporter.packages import ROOT
from exporter.publish import dump_json, write_kernels
from exporter.serve import serving

PAGE = '<!doctype html><meta charset=utf-8><title>Bitbrush bench</title><link rel=icon href="data:,">'


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure.

    models      of exporter.bench.MODELS
    only        a regular expression on lines such as "klein-4b denoiser linear ternary 1536x9216x3072 f16"; None: all
    variant     forced on every kernel that has it; None: all of them, and the page's own choice for whole components
    sizes       of pictures, in pixels
    runs        of which medians are taken
    whole       whether components are run whole
    product     rows, outputs and inputs of the matrix products called "matmul"
    weights     binary or ternary
    peers       whether other engines run the same products, in the page
    engines     whether others run outside the browser, before and after the page
    """

    models: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    product: tuple[int, int, int]
    weights: str = "ternary"
    adapter: str = "auto"
    all_features: bool = False
    peers: bool = False
    engines: bool = False
    only: str | None = None
    variant: str | None = None
    runs: int = 5
    whole: bool = True


@dataclass(slots=True)
class Measured:
    """The facts of a run: of the adapter, its ceilings (multiply-adds or bytes a second), rows of the tables."""

    adapter: dict[str, Any]
    ceilings: dict[str, float]
    kernels: list[dict[str, Any]] = field(default_factory=list)
    wholes: list[dict[str, Any]] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)


def write_site(out: Path, models: dict[str, Shapes]) -> None:
    """A page, the scripts, the models' shapes and every kernel that they dispatch, in a folder made anew."""
    shutil.rmtree(out, ignore_errors=True)
    for name in ("bench", "kernels", "js"):
        (out / name).mkdir(parents=True)
    for name in ("runtime", "bench"):
        shutil.copytree(ROOT / "site" / "js" / name, out / "js" / name)
    (out / "index.html").write_text(PAGE, encoding="utf-8")
    for name, shapes in models.items():
        dump_json(out / "bench" / f"{name}.json", shapes)
    plans = [record["plan"] for shapes in models.values() for record in shapes["components"].values()]
    write_kernels(out / "kernels", plans)


@contextmanager
def opened(site: Path, adapter: str, variant: str | None, all_features: bool) -> Iterator[tuple[Page, dict[str, Any]]]:
    """The page in a browser with a device open, and the device's facts."""
    extra = (*FINE_CLOCK, *(FEATURE_FLAGS if all_features else ()))
    with serving(site) as url, launch(adapter, extra=extra) as browser:
        page = browser.new_page()
        page.set_default_timeout(0)
        page.on("console", lambda message: print(message.text, file=sys.stderr))
        page.goto(url)
        try:
            page.evaluate("import('./js/bench/main.js')")
            facts = page.evaluate("(variant) => bench.open(variant ?? undefined)", variant)
            yield page, {**facts, "version": browser.version}
        except PlaywrightError as error:
            line = str(error).strip().splitlines()[0]
            if "adapter" in line or "WebGPU" in line:
                raise NoBrowser(f"bench: {line}") from error
            raise BitbrushError(f"bench: expected the page to finish, found: {line}") from error


def shape_text(op: dict[str, Any]) -> str:
    """Sizes of a dispatch in a few characters."""
    sizes, kernel = op["sizes"], op["kernel"]
    if kernel.startswith("linear"):
        return "{rows}x{N}x{K}".format(**sizes)
    if kernel == "conv2d":
        return "{rows}x{width}x{IN_CHANNELS}->{OUT_CHANNELS} k{KERNEL_SIZE}".format(**sizes)
    if kernel == "attention":
        return "{q_tokens}x{kv_tokens} {HEADS}x{HEAD_SIZE}".format(**sizes)
    return " ".join(f"{name}={value:g}" for name, value in sizes.items() if value != 1)


def options_text(options: dict[str, Any]) -> str:
    """Options that are not off, such as "ternary bias"."""
    kept = {name: value for name, value in options.items() if value not in (False, "none") and name != "aligned"}
    return " ".join(name if value is True else str(value) for name, value in sorted(kept.items(), reverse=True))


def ceiling_of(variant: str, ceilings: dict[str, float]) -> float | None:
    """The most multiply-adds a second that a variant's arithmetic allows."""
    for kind in ("matrix_int8", "matrix_f16", "int8", "f16"):
        if variant.startswith(kind):
            return ceilings.get(kind)
    return ceilings.get("f32")


def measure_kernels(page: Page, model: str, wanted: Wanted, found: Measured) -> None:
    """Time every distinct dispatch of a model in every variant, at each size, and compare it with the baseline."""
    pattern = re.compile(wanted.only or "")
    seen: set[str] = set()
    for size in wanted.sizes:
        for op in page.evaluate("([model, size]) => bench.list(model, size)", [model, list(size)]):
            shape, options = shape_text(op), options_text(op["options"])
            forced = wanted.variant if wanted.variant in op["variants"] else None
            lines = {
                f"{model} {op['component']} {op['kernel']} {options} {shape} {variant}": variant
                for variant in op["variants"]
                if forced in (None, variant)
            }
            lines = {line: variant for line, variant in lines.items() if pattern.search(line) and line not in seen}
            seen |= lines.keys()
            errors = _errors(page, op, list(lines.values()))
            for line, variant in lines.items():
                row = {
                    "model": model, "size": f"{size[0]}x{size[1]}", "component": op["component"],
                    "kernel": op["kernel"], "options": options, "shape": shape, "variant": variant,
                    "count": op["count"], "relative_error": errors.get(variant),
                }  # fmt: skip
                try:
                    options_js = {"runs": wanted.runs}
                    script = "([id, variant, options]) => bench.time(id, variant, options)"
                    timed = page.evaluate(script, [op["id"], variant, options_js])
                except PlaywrightError as error:
                    row["error"] = str(error).strip().splitlines()[0]
                    print(f"{line}: {row['error']}", file=sys.stderr)
                else:
                    row |= timed
                    _rate(row, op["macs"], found.ceilings)
                found.kernels.append(row)


def _errors(page: Page, op: dict[str, Any], variants: list[str]) -> dict[str, float | None]:
    """Relative errors of variants of a dispatch against the baseline, of which there are none where it fails."""
    if set(variants) <= {op["variants"][0]}:
        return {}
    try:
        verdicts = page.evaluate("([id, variants]) => bench.check(id, variants)", [op["id"], variants])
    except PlaywrightError as error:
        print(f"{op['kernel']}: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return {}
    return {variant: verdicts[variant].get("error") for variant in variants if variant != op["variants"][0]}


def _rate(row: dict[str, Any], macs: float, ceilings: dict[str, float]) -> None:
    seconds = row["ms"] / 1000
    if macs:
        row["tflops"] = 2 * macs / seconds / 1e12
        if ceiling := ceiling_of(row["variant"], ceilings):
            row["share"] = macs / seconds / ceiling
    else:
        row["gb_per_s"] = row["bytes"] / seconds / 1e9
        if ceilings.get("copy"):
            row["share"] = row["bytes"] / seconds / ceilings["copy"]


def _of(component: str, by_key: dict[str, Any]) -> dict[str, Any]:
    """What a choice says of a component."""
    return {key: value for key, value in by_key.items() if key.startswith(f"{component} ")}


def measure_wholes(page: Page, model: str, wanted: Wanted, found: Measured) -> None:
    """Run each component of a model whole, at each size."""
    pattern = re.compile(wanted.only or "")
    for index, size in enumerate(wanted.sizes):
        wanted_here = [name for name in COMPONENTS if (name != "encoder" or index == 0)]
        wanted_here = [name for name in wanted_here if pattern.search(f"{model} whole {name} {size[0]}x{size[1]}")]
        if not wanted_here:
            continue
        choice = page.evaluate("([model, size]) => bench.choose(model, size)", [model, list(size)])
        kernels = f"all: {wanted.variant}" if wanted.variant else choice["summary"]
        for component in wanted_here:
            row = {"model": model, "size": f"{size[0]}x{size[1]}", "component": component, "kernels": kernels}
            own = {part: _of(component, choice[part]) for part in ("variants", "times")}
            row |= {"choice_ms": choice["ms"], "rejected": choice["rejected"], **own}
            try:
                script = "([model, component, size, options]) => bench.whole(model, component, size, options)"
                row |= page.evaluate(script, [model, component, list(size), {"runs": wanted.runs}])
            except PlaywrightError as error:
                row["error"] = str(error).strip().splitlines()[0]
                print(f"{model} {component} {size}: {row['error']}", file=sys.stderr)
            found.wholes.append(row)
