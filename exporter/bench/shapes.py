"""Plans and tensors' shapes of what is measured: no weights are needed, so FLUX.2-klein-4B comes from its configs."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from exporter.errors import BitbrushError
from exporter.packages import ROOT
from exporter.publish import dump_json

COMPONENTS = ("encoder", "denoiser", "decoder")
WEIGHTS = ("binary", "ternary", "int4", "int8", "f16", "f32")
ITEM_BYTES = {"U32": 4, "F32": 4, "F16": 2, "U8": 1}
# Sources whose change changes klein's plans.
PLAN_SOURCES = ("graph", "lower", "passes", "klein.py", "configs.py", "storage.py", "packing.py", "expressions.py")
TEXT_TOKENS = 512

Shapes = dict[str, Any]  # {"components": {name: {"plan", "tensors"}}, "text_tokens", "downscale"}


def _record(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """A tensor's record as a manifest has it, in no shard."""
    size = ITEM_BYTES[dtype]
    for length in shape:
        size *= length
    return {"dtype": dtype, "shape": list(shape), "parts": [{"shard": 0, "offset": 0, "bytes": size}]}


def product_shapes(rows: int, n: int, k: int) -> Shapes:
    """One matrix product y = x·Wᵀ, x f32[rows, k], for each kind of weights, as a model of its own."""
    from exporter.lower.operators.matmul import NO_EPILOGUE
    from exporter.lower.plan import FORMAT
    from exporter.storage import StoredTensor

    values = [
        {"name": "x", "role": "input", "dtype": "f32", "elements": rows * k},
        {"name": "y", "role": "output", "dtype": "f32", "elements": rows * n},
    ]
    dispatches, tensors = [], {}
    for kind in WEIGHTS:
        group = 64 if kind in ("int4", "int8") else 128
        if kind in ("f16", "f32"):
            bindings = {"weight": kind}
            tensors[kind] = _record(kind.upper(), (n, k))
        else:
            stored = StoredTensor(kind, kind, (n, k), kind, group)
            tensors |= {name: _record(dtype, shape) for name, dtype, shape in stored.parts()}
            for name, codes in stored.expansions().items():
                tensors[name]["expands_to"] = codes
            bindings = {part: f"{kind}.{part}" for part in ("codes", "scales")}
            bindings |= {"offsets": f"{kind}.offsets"} if kind in ("int4", "int8") else {}
        dispatches.append(
            {
                "kernel": "linear",
                "options": {"weights": kind, "bias": False, "aligned": True, "epilogue": "none"},
                "constants": {"N": n, "K": k, "GROUP": group},
                "uniforms": {"rows": rows, "x_offset": 0, "x_stride": k, **NO_EPILOGUE, "y_offset": 0, "y_stride": n},
                "bindings": {"x": 0, **bindings, "y": 1},
            }
        )
    plan = {
        "format": FORMAT, "component": "denoiser", "symbols": [], "arenas": 0, "values": values, "loops": [],
        "dispatches": dispatches,
    }  # fmt: skip
    return {"components": {"denoiser": {"plan": plan, "tensors": tensors}}, "text_tokens": 1, "downscale": 16}


def pocket_shapes(weights: str) -> Shapes:
    """The embedded model's plans and tensors."""
    from exporter.bundle import Bundle
    from exporter.lower import lower_bundle

    bundle = Bundle(ROOT / "models" / "pocket" / weights)
    plans = lower_bundle(bundle.path)
    components = {name: {"plan": plans[name], "tensors": bundle.tensors(name)} for name in COMPONENTS}
    manifest = bundle.manifest
    return {
        "components": components,
        "text_tokens": manifest["text"]["length"],
        "downscale": manifest["latents"]["downscale"],
    }


def _sources_hash() -> str:
    total = hashlib.sha256()
    for name in PLAN_SOURCES:
        source = ROOT / "exporter" / name
        for path in sorted([source] if source.is_file() else source.rglob("*.py")):
            total.update(path.read_bytes())
    for path in sorted((ROOT / "webgpu_kernels").rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def klein_shapes(weights: str, cache: Path) -> Shapes:
    """FLUX.2-klein-4B's plans and tensors, from its configs alone.

    Making them takes torch and a minute or two, so they are kept in `cache`, a folder.

    Raises:
        BitbrushError: torch and its companions are not installed and nothing is kept.
    """
    file = cache / f"klein-4b-{weights}-{_sources_hash()}.json"
    if file.is_file():
        return json.loads(file.read_text("utf-8"))
    try:
        from exporter.graph import export_graphs
        from exporter.klein import KLEIN_4B
        from exporter.lower import lower_graph

        print("klein-4b: making its graphs, once", file=sys.stderr)
        graphs = export_graphs(KLEIN_4B, weights=weights, encoder_bits=4, encoder_layers=(9, 18, 27))
    except ImportError as error:
        raise BitbrushError(f"bench klein-4b: expected the Python package {error.name}, found none") from error
    components = {}
    for name in COMPONENTS:
        tensors: dict[str, Any] = {}
        for tensor in graphs[name].tensors:
            tensors |= {part: _record(dtype, shape) for part, dtype, shape in tensor.parts()}
            for part, codes in tensor.expansions().items():
                tensors[part]["expands_to"] = codes
        components[name] = {"plan": lower_graph(graphs[name].model, name), "tensors": tensors}
    shapes = {"components": components, "text_tokens": TEXT_TOKENS, "downscale": 16}
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob(f"klein-4b-{weights}-*.json"):
        old.unlink()
    dump_json(file, shapes)
    return shapes


def shapes_of(models: tuple[str, ...], weights: str, cache: Path, product: tuple[int, int, int]) -> dict[str, Shapes]:
    """The shapes of the models named, of exporter.bench.MODELS."""
    makers = {
        "matmul": lambda: product_shapes(*product),
        "pocket": lambda: pocket_shapes(weights),
        "klein-4b": lambda: klein_shapes(weights, cache),
    }
    return {name: makers[name]() for name in models}
