"""Other engines' matrix products on the same page and adapter: onnxruntime-web's MatMulNBits and MatMul.

The package comes from npm into the cache folder when it is asked for; no site ever has it.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page

from exporter.bench.measure import Measured, Wanted
from exporter.errors import BitbrushError
from exporter.packages import run_npm

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
ENTRY = "ort.webgpu.min.mjs"
OPSET = 21
# (bits, values per scale, accuracy level: 4 multiplies int8 activations, 0 f32 ones); no bits: a dense f32 MatMul
PRODUCTS = ((2, 128, 4), (4, 128, 4), (2, 32, 4), (4, 32, 4), (4, 32, 0), (2, 128, 0), (4, 128, 0), (None, 0, 0))


def product_name(bits: int | None, block: int, level: int) -> str:
    return f"{bits}-bit block {block} level {level}" if bits else "dense f32"


def product_model(
    rows: int, n: int, k: int, peer: tuple[int | None, int, int], count: int = 1, dtype: type = np.float32
) -> onnx.ModelProto:
    """y = x·Wᵀ of random weights, as one node, or so many times over with the same W (n = k).

    Args:
        peer: of PRODUCTS.
        dtype: of x and y, np.float32 or np.float16.
    """
    bits, block, level = peer
    random = np.random.default_rng(0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if bits:
        codes = random.integers(0, 256, (n, k // block, block * bits // 8), dtype=np.uint8)
        arrays = {"codes": codes, "scales": random.uniform(0.01, 0.02, (n, k // block)).astype(dtype)}
        operator, domain = "MatMulNBits", "com.microsoft"
        attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": level}
    else:
        arrays = {"weight": (random.standard_normal((k, n), dtype=np.float32) * 0.02).astype(dtype)}
        operator, domain, attributes = "MatMul", "", {}
    names = ["x", *(f"x{index}" for index in range(1, count)), "y"]
    nodes = [
        helper.make_node(operator, [before, *arrays], [after], domain=domain, **attributes)
        for before, after in itertools.pairwise(names)
    ]
    x, y = (helper.make_tensor_value_info(name, kind, [rows, size]) for name, size in (("x", k), ("y", n)))
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "product", [x], [y], stored)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def write_peers(site: Path, product: tuple[int, int, int]) -> None:
    """Put the engine and its models into the page's folder.

    Raises:
        BitbrushError: npm could not install the package.
    """
    place = site.parent / "npm"
    package = place / "node_modules" / PACKAGE
    try:
        installed = json.loads((package / "package.json").read_text("utf-8"))["version"]
    except OSError:
        installed = None
    if installed != VERSION:
        place.mkdir(parents=True, exist_ok=True)
        arguments = ("install", "--prefix", str(place), "--no-save", "--ignore-scripts", "--no-audit", "--no-fund")
        done = run_npm((*arguments, f"{PACKAGE}@{VERSION}"))
        if done.returncode or not package.is_dir():
            said = (done.stderr or done.stdout or "nothing").strip().splitlines()[0]
            raise BitbrushError(f"npm: expected {PACKAGE} {VERSION} to be installed, npm said: {said}")
    folder = site / "peers"
    folder.mkdir()
    for path in (package / "dist").iterdir():
        if path.name == ENTRY or re.fullmatch(r"ort-wasm-simd-threaded\.(asyncify|jsep|jspi)\.(mjs|wasm)", path.name):
            shutil.copyfile(path, folder / path.name)
    for index, peer in enumerate(PRODUCTS):
        onnx.save(product_model(*product, peer), folder / f"{index}.onnx")


def measure_peers(page: Page, wanted: Wanted, found: Measured) -> None:
    """Time each product; what an engine refuses is a row that says so."""
    rows, n, k = wanted.product
    pattern = re.compile(wanted.only or "")
    for index, peer in enumerate(PRODUCTS):
        line = f"peer {PACKAGE} {product_name(*peer)}"
        if not pattern.search(line):
            continue
        row = {"engine": f"{PACKAGE} {VERSION}", "product": product_name(*peer), "shape": f"{rows}x{n}x{k}"}
        try:
            script = """async ([entry, index, rows, n, k, runs]) =>
              (await import("./js/bench/peers.js")).timePeer(entry, `${index}.onnx`, rows, n, k, runs)"""
            row |= page.evaluate(script, [ENTRY, index, rows, n, k, min(wanted.runs, 3)])
            row["tflops"] = 2 * rows * n * k / (row["ms"] / 1000) / 1e12
        except PlaywrightError as error:
            row["error"] = str(error).strip().splitlines()[0]
            print(f"{line}: {row['error']}", file=sys.stderr)
        found.peers.append(row)
