"""Which variant of a kernel is chosen: by fake timings, and on an adapter with a shader that is wrong on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from exporter.lower.operators.matmul import NO_EPILOGUE
from tests.runtime.conftest import copy_with_kernels, open_page

N, K, ROWS = 256, 128, 512


def linear(weights: str, n: int, tensors: dict[str, str]) -> dict[str, Any]:
    return {
        "kernel": "linear",
        "options": {"weights": weights, "bias": False, "aligned": True, "epilogue": "none"},
        "constants": {"N": n, "K": K, "GROUP": 128},
        "uniforms": {"rows": "image_tokens", "x_offset": 0, "x_stride": K, **NO_EPILOGUE, "y_offset": 0, "y_stride": n},
        "bindings": {"x": 0, **tensors, "y": 1},
    }


PLAN: dict[str, Any] = {
    "format": 3, "component": "denoiser", "symbols": ["image_tokens"], "arenas": 0, "loops": [],
    "values": [
        {"name": "x", "role": "input", "dtype": "f32", "elements": ["mul", "image_tokens", K]},
        {"name": "y", "role": "output", "dtype": "f32", "elements": ["mul", "image_tokens", N]},
    ],
    "dispatches": [
        linear("binary", N, {"codes": "A.codes", "scales": "A.scales"}),
        linear("f32", 4, {"weight": "B"}),
    ],
}  # fmt: skip
TENSORS = [["A.codes", N, N * K // 8], ["A.scales", N, N * K // 64], ["B", 4, 16 * K]]

# By variant: time in ms of 512 rows of the heavy dispatch, the error found in its result and the greatest allowed.
FAKE = """async ([plan, fakes, adapter, tokens, largest]) => {
  const { chooseVariants, summaryOf } = await load("choice");
  const variants = Object.keys(fakes).map((variant) => ({ kernel: "linear", variant, features: [], limits: {},
    default: fakes[variant].default ?? true, software: fakes[variant].software ?? false,
    error: fakes[variant].error ?? null }));
  const offer = { features: new Set(), limits: {} };
  const pipelines = { variantsOf: () => variants, offer, choice: new Map() };
  const calls = [];
  const msOf = (variant, { N = 256, rows, q_tokens }) => q_tokens ? fakes[variant].ms * (q_tokens / 512) ** 2 :
    fakes[variant].ms * rows / 512 * N / 256 * (N < 128 ? fakes[variant].narrow ?? 1 : 1);
  const rowsOf = ({ sizes }) => sizes.rows ?? sizes.q_tokens;
  const measurer = {
    compile: async (wanted) => wanted.forEach(({ variants }) => calls.push(["compile", variants])),
    open: async () => ({
      check: async (shape, names) => Object.fromEntries(names.map((name) => {
        const { error = 0, found = 0, fails } = fakes[name];
        calls.push(["check", name, shape.sizes.N, rowsOf(shape), msOf(name, shape.sizes)]);
        const ms = Math.max(msOf(name, shape.sizes), 0.1); // by a coarse clock
        return [name, fails ? { failure: fails } : { ms, error: found ?? Infinity }];
      })),
      time: async (shape, names) => Object.fromEntries(names.map((name) => {
        const ms = msOf(name, shape.sizes);
        calls.push(["time", name, shape.sizes.N ?? null, rowsOf(shape), 3 * ms]);
        return [name, { ms, spent: 3 * ms }];
      })),
      destroy: () => calls.push(["close"]),
    }),
    destroy: () => calls.push(["destroy"]),
  };
  const context = { facts: { adapter } };
  const part = { plan, tensors: new Map(), symbols: { image_tokens: tokens },
    largest: largest && { image_tokens: largest } };
  const choice = await chooseVariants(context, pipelines, [part], { measurer });
  const orders = [...pipelines.choice.values()];
  return { ...choice, calls, orders, applied: orders.map(([best]) => best), summary: summaryOf(choice) };
}"""
GPU = {"vendor": "maker", "fallback": False}


def choose(
    page: Page,
    fakes: dict[str, dict[str, Any]],
    adapter: dict[str, Any] = GPU,
    plan: dict[str, Any] = PLAN,
    tokens: int = ROWS,
    largest: int | None = None,
) -> dict[str, Any]:
    return page.evaluate(FAKE, [plan, fakes, adapter, tokens, largest])


def of(found: dict[str, Any], kind: str) -> list[Any]:
    return [call for call in found["calls"] if call[0] == kind]


def heaviest(found: dict[str, Any]) -> str:
    return next(name for key, name in found["variants"].items() if "binary" in key)


def test_the_fastest_right_variant_is_chosen(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 5}, "f16": {"ms": 2}, "staged": {"ms": 3}})
    assert heaviest(found) == "f16" and set(found["applied"]) == {"f16"}
    assert ["f16", "staged", "f32"] in found["orders"]  # where the sizes rule f16 out, staged serves
    assert found["rejected"] == [] and found["summary"] == "matmul: f16"
    timed = [(name, rows) for kind, name, n, rows, _ in of(found, "time") if n == N]
    assert timed == [(name, rows) for rows in (130, ROWS) for name in ("f32", "f16", "staged")]


@pytest.mark.parametrize("error", [3e-3, None])  # None: infinite
def test_a_variant_with_wrong_results_is_left_out_and_reported(calculator: Page, error: float | None) -> None:
    found = choose(calculator, {"f32": {"ms": 5}, "f16": {"ms": 1, "found": error, "error": 2e-3}})
    assert set(found["applied"]) == {"f32"}
    assert {(one["kernel"], one["variant"]) for one in found["rejected"]} == {("linear", "f16")}
    assert "expected an error of at most 0.002" in found["rejected"][0]["reason"]
    assert "f16" not in [call[1] for call in of(found, "time")]


def test_a_variant_within_its_stated_error_is_right(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 5}, "f16": {"ms": 1, "found": 1.5e-3, "error": 2e-3}})
    assert heaviest(found) == "f16"


def test_a_variant_that_does_not_compile_is_left_out_and_reported(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 5}, "broken": {"ms": 1, "fails": "line 3: no such thing"}})
    assert set(found["applied"]) == {"f32"}
    assert found["rejected"][0]["reason"] == "line 3: no such thing"


def test_what_is_no_default_is_not_even_tried(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 5}, "int8": {"ms": 1, "default": False}})
    assert found["calls"] == [["destroy"]] and found["summary"] == "matmul: f32"


def test_a_software_adapter_keeps_the_baseline_without_trials(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 5}, "staged": {"ms": 1}}, {"vendor": "google", "fallback": True})
    assert found["calls"] == [["destroy"]] and found["summary"] == "matmul: f32"


def test_a_software_adapter_takes_the_variant_made_for_it(calculator: Page) -> None:
    fakes = {"f32": {"ms": 5}, "staged": {"ms": 1}, "quads": {"ms": 9, "default": False, "software": True}}
    found = choose(calculator, fakes, {"vendor": "google", "fallback": True})
    assert set(found["applied"]) == {"quads"} and found["summary"] == "matmul: quads"
    assert "quads" not in choose(calculator, fakes)["applied"]


def test_a_kernel_with_one_variant_is_not_measured(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 5}})
    assert found["calls"] == [["destroy"]] and found["variants"] == {}


def test_slow_adapters_time_fewer_rows(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 3000}, "staged": {"ms": 2000}})
    rows = [call[3] for call in of(found, "time")]
    assert rows == [] or max(rows) < ROWS
    assert heaviest(found) == "staged"


def test_timing_stays_within_its_budget(calculator: Page) -> None:
    for ms in (0.01, 1, 30, 100, 400):
        fakes = {"f32": {"ms": ms}, "a": {"ms": ms / 2}, "b": {"ms": ms / 3}}
        found = choose(calculator, fakes)
        assert sum(call[4] for call in of(found, "check") + of(found, "time")) < 300, ms
        assert heaviest(found) == "b", ms


def test_shapes_too_short_for_the_clock_are_timed_by_repeating_them(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 0.05}, "a": {"ms": 0.04}, "b": {"ms": 0.03}}, tokens=200)
    assert [call[1] for call in of(found, "time") if call[2] == N] == ["f32", "a", "b"]
    assert heaviest(found) == "b"


def test_a_kernels_light_shapes_take_its_winner_unless_it_is_wrong_there(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 5}, "f16": {"ms": 2}})
    light = [call for call in of(found, "check") + of(found, "time") if call[2] == 4]
    assert {call[0] for call in light} == {"check"} and len(light) == 2  # 4 of 260 rows of weights
    # All that is needed of a kind is compiled together, before anything is measured.
    assert [call[:2] for call in found["calls"] if call[0] in ("compile", "check")][:2] == [
        ["compile", ["f32", "f16"]], ["check", "f32"],
    ]  # fmt: skip


def test_light_shapes_take_the_winner_of_the_nearest_size(calculator: Page) -> None:
    products = [linear("binary", n, {"codes": "A.codes", "scales": "A.scales"}) for n in (256, 64, 8)]
    fakes = {"f32": {"ms": 5}, "wide": {"ms": 2, "narrow": 4}, "narrow": {"ms": 3}}
    found = choose(calculator, fakes, plan={**PLAN, "dispatches": products})
    assert {call[2] for call in of(found, "time")} == {256, 64}
    assert list(found["variants"].values()) == ["wide", "narrow", "narrow"]


def test_attention_is_timed_at_the_largest_size(calculator: Page) -> None:
    views = {f"{name}_{part}": 0 for name in "qkvy" for part in ("offset", "stride", "head_stride")}
    attention = {
        "kernel": "attention",
        "options": {"mask": "none"},
        "constants": {"HEADS": 8, "KV_HEADS": 8, "HEAD_SIZE": 128, "SCALE": 0.1},
        "uniforms": {"q_tokens": "image_tokens", "kv_tokens": "image_tokens", **views},
        "bindings": {"q": 0, "k": 0, "v": 0, "y": 1},
    }
    plan = {**PLAN, "dispatches": [PLAN["dispatches"][0], attention]}
    found = choose(calculator, {"f32": {"ms": 1}, "f16": {"ms": 0.5}}, plan=plan, largest=2048)
    sizes = {(call[2], call[3]) for call in of(found, "time")}
    assert sizes == {(N, 130), (N, ROWS), (None, 130), (None, 2048)}


def test_a_fast_device_times_whole_shapes_however_coarse_its_clock(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 40}, "a": {"ms": 0.1}, "b": {"ms": 0.08}})
    assert {call[1] for call in of(found, "time") if call[2:4] == [N, ROWS]} == {"a", "b"}


def test_epilogues_of_one_product_are_timed_once_and_sizes_apart(calculator: Page) -> None:
    products = [linear("binary", n, {"codes": "A.codes", "scales": "A.scales"}) for n in (256, 256, 192)]
    products[1]["options"]["epilogue"] = "residual"
    found = choose(calculator, {"f32": {"ms": 5}, "f16": {"ms": 2}}, plan={**PLAN, "dispatches": products})
    assert [call[2] for call in of(found, "time")] == [256] * 4 + [192] * 4
    assert sorted(call[2] for call in of(found, "check")) == [192, 192, 256, 256, 256, 256]
    assert len(found["applied"]) == 3 and set(found["applied"]) == {"f16"}


def test_a_check_sees_more_than_a_tile_of_rows(calculator: Page) -> None:
    found = choose(calculator, {"f32": {"ms": 5}, "f16": {"ms": 2}})
    assert all(128 < call[3] < 256 for call in of(found, "check"))
    assert len(of(found, "close")) == 2 and found["calls"][-1] == ["destroy"]


HEAD = "@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) "
# Mistakes by variant: what takes the place of what in the shader, or another entry point instead of its own.
MISTAKES = {
    "wrong": HEAD + "{ y[id.x] = f32(params.rows); }",
    "strange": HEAD + "{ y[id.x] = bitcast<f32>(0x7fc00000u | params.rows); }",
    "idle": HEAD + "{ if (id.x > 4000000000u) { y[0] = f32(params.rows); } }",
    "late": ("row >= params.rows", "row >= 128u"),  # right in the first tile alone
}


@pytest.fixture(scope="module")
def kernels_site(site_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime with a kernel index whose further variants have mistakes in their shaders, all but one."""
    folder = copy_with_kernels(site_folder, tmp_path_factory.mktemp("choice") / "site", PLAN)
    entries = json.loads((folder / "kernels" / "index.json").read_text("utf-8"))
    kept = [entry for entry in entries if entry["kernel"] == "compare"]
    for entry in (one for one in entries if one["kernel"] == "linear" and one["variant"] == "f32"):
        text = (folder / "kernels" / entry["file"]).read_text("utf-8")
        kept.append(entry)
        for name, mistake in MISTAKES.items():
            file = f"{name}.{entry['file']}"
            if isinstance(mistake, tuple):
                assert mistake[0] in text
                wrong = text.replace(*mistake, 1)
            else:
                wrong = text.replace("fn main(", "fn other(", 1) + mistake
            (folder / "kernels" / file).write_text(wrong, encoding="utf-8")
            kept.append({**entry, "variant": name, "file": file})
        kept.append({**entry, "variant": "same"})
    (folder / "kernels" / "index.json").write_text(json.dumps(kept), encoding="utf-8")
    return folder


REAL = """async ([plan, tensors]) => {
  const { openDevice } = await load("device");
  const { loadPipelines } = await load("pipelines");
  const { findChoice } = await load("choice");
  const context = await openDevice(navigator.gpu);
  context.facts.adapter = { vendor: "a card", fallback: false }; // a software adapter tries nothing
  const pipelines = await loadPipelines(context, new URL("kernels/index.json", location.href).href);
  const sizes = new Map(tensors.map(([name, rows, bytes]) => [name, { rows, bytes }]));
  const part = { plan, tensors: sizes, symbols: { image_tokens: 256 } };
  const began = performance.now();
  const choice = await findChoice(context, pipelines, [part]);
  return { choice, ms: performance.now() - began, compiled: [...pipelines.compiled.keys()].length,
    unseen: pipelines.entryOf(plan.dispatches[0], "encoder").variant, memory: context.memory(),
    applied: [...pipelines.choice].map(([key, names]) => [key, names[0]]) };
}"""


def test_on_a_real_adapter_wrong_shaders_are_found_and_the_choice_is_remembered(
    browser: Browser, kernels_site: Path, local_server: Callable[[Path], str]
) -> None:
    with open_page(browser, local_server(kernels_site)) as page:
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        first = page.evaluate(REAL, [PLAN, TENSORS])
        heavy = [one for one in first["choice"]["rejected"] if "binary" in one["key"]]
        assert {one["variant"] for one in heavy} == set(MISTAKES)
        reasons = {one["variant"]: one["reason"] for one in heavy}
        assert "found 1.00" in reasons["idle"] and "found Infinity" in reasons["strange"], reasons
        assert first["choice"]["ms"]["compile"] > 0 and first["choice"]["ms"]["measure"] > 0
        assert any("variant wrong is left out" in text for text in messages)
        assert set(dict(first["applied"]).values()) <= {"f32", "same"}
        assert first["unseen"] == "f32"
        assert first["memory"] == {"total": 0, "byLabel": {}}
        again = page.evaluate(REAL, [PLAN, TENSORS])
        assert again["compiled"] == 0 and again["choice"] == first["choice"]
        assert again["applied"] == first["applied"]
