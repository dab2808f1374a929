"""Plans, manifests and requests: what the runtime refuses, and how it says so."""

import copy
from typing import Any

import pytest
from playwright.sync_api import Page

from exporter.expressions import evaluate
from exporter.lower.bands import free_symbols

PLAN: dict[str, Any] = {
    "format": 3,
    "component": "denoiser",
    "symbols": ["rows"],
    "arenas": 2,
    "loops": [],
    "values": [
        {"name": "x", "role": "input", "dtype": "f32", "elements": "rows"},
        {
            "name": "t",
            "role": "temporary",
            "dtype": "f32",
            "elements": ["mul", "rows", 4],
            "arena": 0,
            "first": 0,
            "last": 1,
        },
        {"name": "y", "role": "output", "dtype": "f32", "elements": "rows"},
    ],
    "dispatches": [
        {"kernel": "unary", "options": {}, "constants": {}, "uniforms": {"d0": "rows"}, "bindings": {"x": 0, "y": 1}},
        {"kernel": "unary", "options": {}, "constants": {}, "uniforms": {"d0": "rows"}, "bindings": {"x": 1, "y": 2}},
    ],
}
LOOP = {"first": 0, "last": 1, "rows": "rows", "band_rows": 2}
DIGEST = "ab" * 32
COMPONENT = {
    "graph": "g.onnx",
    "plan": "g.plan.json",
    "tensors": {"w": {"dtype": "F16", "shape": [2, 3], "parts": [{"shard": 0, "offset": 8, "bytes": 12}]}},
}
MANIFEST: dict[str, Any] = {
    "format": 2, "name": "tiny", "variant": "keep", "weights": "keep",
    "components": {name: copy.deepcopy(COMPONENT) for name in ("encoder", "modulation", "denoiser", "decoder")},
    "shards": [{"file": f"shards/{DIGEST}.safetensors", "bytes": 48, "sha256": DIGEST}],
    "text": {"tokenizer": "tokenizer", "prefix": "", "suffix": "", "length": 8, "pad_id": 0, "layers": [1],
             "features": 4, "rotary": {"head_size": 8, "theta": 10000}},
    "latents": {"channels": 8, "downscale": 16},
    "denoiser": {"rotary": {"axes": [2, 2, 2, 2], "theta": 2000}, "timestep_features": 256},
    "modulation": {"sigmas": [1.0], "table": "table", "width": 2},
    "schedule": {"steps": 4},
    "sizes": {"multiple": 16, "minimum": 64, "maximum": 512, "default": [256, 256], "presets": [[256, 256]]},
}  # fmt: skip
TABLE = {"dtype": "F32", "shape": [1, 2], "parts": [{"shard": 0, "offset": 40, "bytes": 8}]}
MANIFEST["components"]["denoiser"]["tensors"] |= {
    "table": TABLE,
    "t": {
        "dtype": "U8", "shape": [2, 16], "expands_to": {"name": "c", "shape": [3, 3]},
        "parts": [{"shard": 0, "offset": 8, "bytes": 32}],
    },
}  # fmt: skip


def changed(document: dict[str, Any], path: tuple, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(document)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def refusal(page: Page, module: str, function: str, *arguments: Any) -> dict[str, str] | None:
    script = """async ([module, name, args]) => {
      const action = (await load(module))[name];
      return failure(() => action(...args));
    }"""
    return page.evaluate(script, [module, function, list(arguments)])


def test_good_documents_are_taken(calculator: Page) -> None:
    assert refusal(calculator, "plan", "parsePlan", PLAN, "here") is None
    window = {"value": 1, "first": ["mul", "band", 64], "elements": 64}
    looped = changed(changed(PLAN, ("loops",), [LOOP]), ("dispatches", 1, "bindings", "x"), window)
    assert refusal(calculator, "plan", "parsePlan", looped, "here") is None
    assert refusal(calculator, "manifest", "parseManifest", MANIFEST, "here") is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("format",), 4, "newer"),
        (("format",), 2, "expected format 3"),
        (("format",), "3", "format 3"),
        (("values",), None, "values"),
        (("loops",), None, "loops"),
        (("loops",), [LOOP, LOOP], "dispatches from 2 to 1"),
        (("loops",), [{**LOOP, "last": 2}], "dispatches from 0 to 1"),
        (("loops",), [{"first": 0, "last": 1, "rows": 4}], "band_rows"),
        (("dispatches", 1, "bindings", "x"), {"value": 3, "first": 0, "elements": 1}, "below 3"),
        (("dispatches", 1, "bindings", "x"), {"value": 1, "first": 0}, "a window"),
        (("dispatches",), [], "dispatches"),
        (("arenas",), -1, "arenas"),
        (("values", 0, "role"), "parameter", "role"),
        (("values", 0, "dtype"), "f16", "dtype"),
        (("values", 1, "arena"), 2, "below 2"),
        (("values", 1, "last"), 2, "life"),
        (("values", 1, "first"), 1, "alive at dispatch 0"),
        (("dispatches", 1, "bindings", "x"), 3, "below 3"),
        (("dispatches", 1, "bindings", "x"), None, "binding x"),
        (("dispatches", 1, "bindings", "x"), {"tensor": "w", "first": -1, "rows": 2}, "binding x"),
        (("dispatches", 1, "bindings", "x"), {"tensor": "w", "first": 0}, "a count of rows"),
        (("dispatches", 1, "bindings", "x"), {"tensor": 3, "first": 0, "rows": 2}, "a tensor"),
        (("dispatches", 1, "constants"), {"N": "3"}, "constant N"),
        (("dispatches", 1, "kernel"), 7, "kernel"),
    ],
)
def test_a_bad_plan_is_refused(calculator: Page, path: tuple, value: Any, said: str) -> None:
    error = refusal(calculator, "plan", "parsePlan", changed(PLAN, path, value), "http://x/p.plan.json")
    assert error["code"] == "bad-bundle"
    assert said in error["message"]
    assert "http://x/p.plan.json" in error["message"]


def test_a_value_that_dies_within_a_loop_is_refused(calculator: Page) -> None:
    longer = [*PLAN["dispatches"], {**PLAN["dispatches"][0], "bindings": {"x": 0, "y": 2}}]
    plan = {**PLAN, "dispatches": longer, "loops": [{**LOOP, "first": 1, "last": 2}]}
    assert "t alive from 1 to 2" in refusal(calculator, "plan", "parsePlan", plan, "here")["message"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("format",), 3, "newer"),
        (("format",), 1, "expected format 2, found 1"),
        (("modulation", "sigmas"), ["1"], "modulation.sigmas"),
        (("modulation", "width"), 3, "F32 [1,3] in the denoiser"),
        (("modulation", "table"), "w", "F32 [1,2] in the denoiser"),
        (("modulation", "table"), "none", "F32 [1,2] in the denoiser"),
        (("components", "modulation"), None, "components.modulation"),
        (("shards", 0, "sha256"), "../x", "sha256"),
        (("text", "length"), 0, "text.length"),
        (("latents",), None, "latents.channels"),
        (("sizes", "presets"), [[256]], "sizes.presets"),
        (("components", "decoder"), None, "components.decoder"),
        (("components", "encoder", "tensors", "w", "dtype"), "F8", "F16"),
        (("components", "encoder", "tensors", "w", "shape"), [2, 4], "16 bytes"),
        (("components", "encoder", "tensors", "w", "parts", 0, "offset"), 48, "inside shard 0"),
        (("components", "encoder", "tensors", "w", "parts", 0, "shard"), 1, "shard"),
        (("components", "encoder", "tensors", "w", "expands_to"), {"name": "c", "shape": [1, 5]}, "dtype U8"),
        (("components", "denoiser", "tensors", "t", "expands_to"), None, "dtype U8"),
        (("components", "denoiser", "tensors", "t", "expands_to", "name"), 7, "dtype U8"),
        (("components", "denoiser", "tensors", "t", "expands_to", "name"), "w", "each tensor once"),
        (("components", "denoiser", "tensors", "t", "expands_to", "shape"), [9], "two sizes"),
        (("components", "denoiser", "tensors", "t", "expands_to", "shape"), [11, 1], "shape [3,16] for codes [11,1]"),
        (("components", "denoiser", "tensors", "t", "shape"), [16, 2], "shape [2,16] for codes [3,3]"),
        (
            ("components", "denoiser", "tensors", "t", "parts"),
            [{"shard": 0, "offset": 8, "bytes": size} for size in (15, 17)],
            "whole units of 16 bytes",
        ),
    ],
)
def test_a_bad_manifest_is_refused(calculator: Page, path: tuple, value: Any, said: str) -> None:
    error = refusal(calculator, "manifest", "parseManifest", changed(MANIFEST, path, value), "http://x/manifest.json")
    assert error["code"] == "bad-bundle"
    assert said in error["message"]


GOOD = {"prompt": "", "width": 256, "height": 64, "steps": 4, "seed": 2**53 - 1}


def test_a_good_request_is_taken(calculator: Page) -> None:
    assert refusal(calculator, "request", "checkRequest", GOOD, MANIFEST) is None


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("width", 0, 64),
        ("width", 17, 64),
        ("height", 100000, 512),
        ("height", 250, 256),
        ("height", "256", 64),
        ("width", None, 64),
        ("steps", 0, 1),
        ("steps", 2.5, 3),
        ("seed", -1, 0),
        ("seed", 2**53, 2**53 - 1),
        ("seed", "12", 0),
        ("prompt", 7, None),
    ],
)
def test_a_bad_request_names_field_and_nearest_value(
    calculator: Page, field: str, value: Any, nearest: int | None
) -> None:
    error = refusal(calculator, "request", "checkRequest", {**GOOD, field: value}, MANIFEST)
    assert error["code"] == "bad-request"
    assert error["message"].startswith(f"{field}: expected")
    assert nearest is None or error["message"].endswith(f"the nearest is {nearest}")


def test_loops_run_their_dispatches_once_for_each_band(calculator: Page) -> None:
    script = """async ([plan, symbols]) => (await load("bands")).unrolled(plan, symbols).map(({ index, symbols: s }) =>
      [index, s.band, s.bands, s.band_first, s.band_end])"""
    dispatch = PLAN["dispatches"][0]
    often = {**dispatch, "when": ["sub", "bands", 1]}
    plan = {**PLAN, "dispatches": [dispatch, often, dispatch, dispatch], "loops": [{**LOOP, "first": 1, "last": 2}]}
    outside = [None] * 4
    expected = [[0, *outside], [1, 0, 3, 0, 2], [2, 0, 3, 0, 2], [1, 1, 3, 2, 4], [2, 1, 3, 2, 4]]
    expected += [[1, 2, 3, 4, 5], [2, 2, 3, 4, 5], [3, *outside]]
    assert calculator.evaluate(script, [plan, {"rows": 5}]) == expected
    assert calculator.evaluate(script, [plan, {"rows": 2}]) == [[0, *outside], [2, 0, 1, 0, 2], [3, *outside]]


@pytest.mark.parametrize(
    ("binding", "buffer"), [(2**27, 2**28), (2**27, 2**31), (2**30, 2**32), (2**31 - 4, 2**31), (2**25, 2**28)]
)
def test_exporter_and_runtime_choose_bands_alike(calculator: Page, binding: int, buffer: int) -> None:
    script = "async (limits) => (await load('bands')).bandSymbols(limits)"
    found = calculator.evaluate(script, {"maxStorageBufferBindingSize": binding, "maxBufferSize": buffer})
    assert found == free_symbols(binding, buffer)


EXPRESSIONS: list[tuple[Any, dict[str, float]]] = [
    (7, {}), (0.5, {}), ("n", {"n": 9}), (["add", 1, 2, 3], {}), (["sub", "n", 1, 1], {"n": 9}),
    (["mul", "n", "m"], {"n": 3, "m": 4}),
    (["floor_div", 7, 2], {}), (["ceil_div", 7, 2], {}), (["ceil_div", ["mul", "n", 128], 64], {"n": 5}),
    (["min", 4, "n"], {"n": 3}),
    (["max", 4, 0.5], {}), (["floor_div", -7, 2], {}), (["ceil_div", -7, 2], {}),
]  # fmt: skip


def test_expressions_mean_the_same_in_python_and_javascript(calculator: Page) -> None:
    script = (
        "async (cases) => { const { evaluate } = await load('expressions'); return cases.map((c) => evaluate(...c)); }"
    )
    found = calculator.evaluate(script, EXPRESSIONS)
    assert found == [evaluate(expression, symbols) for expression, symbols in EXPRESSIONS]


@pytest.mark.parametrize(
    "expression",
    [
        "m",
        True,
        None,
        [],
        ["pow", 2, 3],
        ["add", 1],
        ["floor_div", 1, 0],
        ["ceil_div", 1.5, 2],
        ["constructor", 1, 2],
        {},
    ],
)
def test_bad_expressions_are_refused_on_both_sides(calculator: Page, expression: Any) -> None:
    assert refusal(calculator, "expressions", "evaluate", expression, {"n": 1})["code"] == "bad-bundle"
    with pytest.raises(ValueError):
        evaluate(expression, {"n": 1})
