"""A hand-made plan over real kernels on a real adapter: numbers, memory, cancels and failures."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from exporter.lower.operators.matmul import NO_EPILOGUE
from tests.runtime.conftest import array, copy_with_kernels, open_page

N, K, ROWS = 24, 32, 5


def linear(x: Any, y: Any, n: int, k: int, weight: str) -> dict[str, Any]:
    return {
        "kernel": "linear",
        "options": {"weights": "f32", "bias": False, "aligned": True, "epilogue": "none"},
        "constants": {"N": n, "K": k, "GROUP": 128},
        "uniforms": {"rows": "rows", "x_offset": 0, "x_stride": k, **NO_EPILOGUE, "y_offset": 0, "y_stride": n},
        "bindings": {"x": x, "weight": weight, "y": y},
        "source": f"{weight} of the test",
    }


def add(a: Any, b: Any, y: Any) -> dict[str, Any]:
    view = {"offset": 0, "s0": K, "s1": 1, "s2": 0, "s3": 0}
    strides = {f"{operand}_{name}": value for operand in "aby" for name, value in view.items()}
    return {
        "kernel": "binary",
        "options": {"op": "add", "rank": 2},
        "constants": {},
        "uniforms": {"d0": "rows", "d1": K, "d2": 1, "d3": 1, **strides},
        "bindings": {"a": a, "b": b, "y": y},
        "source": "sum of the test",
    }


def temporary(name: str, columns: int, arena: int, first: int, last: int) -> dict[str, Any]:
    elements = ["mul", "rows", columns]
    return {
        "name": name,
        "role": "temporary",
        "dtype": "f32",
        "elements": elements,
        "arena": arena,
        "first": first,
        "last": last,
    }


# y = x·Aᵀ·Bᵀ + x, then twice more through the same weights, so that arenas are used again.
PLAN: dict[str, Any] = {
    "format": 3, "component": "denoiser", "symbols": ["rows"], "arenas": 2, "loops": [],
    "values": [
        {"name": "x", "role": "input", "dtype": "f32", "elements": ["mul", "rows", K]},
        temporary("h", N, 0, 0, 1), temporary("u", K, 1, 1, 2), temporary("s", K, 0, 2, 4),
        temporary("h2", N, 1, 3, 4), temporary("u2", K, 1, 4, 5),
        {"name": "y", "role": "output", "dtype": "f32", "elements": ["mul", "rows", K]},
    ],
    "dispatches": [
        linear(0, 1, N, K, "A"), linear(1, 2, K, N, "B"), add(2, 0, 3), linear(3, 4, N, K, "A"),
        linear(4, 5, K, N, "B"), add(5, 0, 6),
    ],
}  # fmt: skip
PLAN["values"][5]["arena"] = 0
PLAN["values"][3]["last"] = 3

SETUP = """async (variant) => {
  const { openDevice } = await load("device");
  const { loadPipelines } = await load("pipelines");
  const { loadWeights } = await load("weights");
  const { parsePlan } = await load("plan");
  const { Pacer } = await load("executor");
  const { prepare } = await load("prepare");
  globalThis.context = await openDevice(navigator.gpu, { baseline: variant === "baseline" });
  globalThis.pipelines = await loadPipelines(context, new URL("kernels/index.json", location.href).href);
  globalThis.pacer = new Pacer();
  globalThis.prepared = async (plan, weights, rows) =>
    prepare(context, parsePlan(plan, "plan"), { symbols: { rows }, tensors: weights.tensors, pipelines, pacer });
  globalThis.weightsOf = (arrays) => {
    const shard = fromBase64(arrays.map(([, data]) => data).join(""));
    let offset = 0;
    const tensors = Object.fromEntries(arrays.map(([name, data, shape]) => {
      const bytes = fromBase64(data).length;
      offset += bytes;
      return [name, { dtype: "F32", shape, parts: [{ shard: 0, offset: offset - bytes, bytes }] }];
    }));
    return loadWeights(context, { graph: "", plan: "", tensors }, { get: async () => shard }, { label: "weights" });
  };
  return context.memory().total;
}"""


@pytest.fixture(scope="module")
def kernel_site(
    site_folder: Path, local_server: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The runtime's files with the kernels that the plan of this test needs."""
    return local_server(copy_with_kernels(site_folder, tmp_path_factory.mktemp("kernels") / "site", PLAN))


@pytest.fixture
def gpu(browser: Browser, kernel_site: str):
    with open_page(browser, kernel_site) as page:
        assert page.evaluate(SETUP, "best") == 0
        yield page


def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chance = np.random.default_rng(5)
    shapes = ((N, K), (K, N), (ROWS, K))
    a, b, x = (chance.standard_normal(shape).astype(np.float32) for shape in shapes)
    return a, b, x


def text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def weights() -> list[list[Any]]:
    a, b, _ = matrices()
    return [["A", text(a), list(a.shape)], ["B", text(b), list(b.shape)]]


def expected() -> np.ndarray:
    a, b, x = (values.astype(np.float64) for values in matrices())
    once = x @ a.T @ b.T + x
    return once @ a.T @ b.T + x


RUN = """async ([plan, arrays, rows, x, budget]) => {
  const weights = await weightsOf(arrays);
  const held = context.memory();
  if (budget) Object.assign(pacer, { budget, note: () => {} });
  const executor = await prepared(plan, weights, rows);
  executor.write("x", new Float32Array(fromBase64(x).buffer));
  const slices = [];
  const { queue } = context.device;
  let [submitted, most] = [0, 0];
  const submit = queue.submit.bind(queue);
  queue.submit = (buffers) => {
    submitted += 1;
    most = Math.max(most, submitted - slices.length + 1); // the first is told before anything runs
    submit(buffers);
  };
  await executor.run({ onSlice: (done, total) => slices.push([done, total]) });
  queue.submit = submit;
  const first = toBase64(new Float32Array(await executor.read("y")));
  await executor.run();
  const again = toBase64(new Float32Array(await executor.read("y")));
  const running = context.memory();
  executor.destroy();
  const after = context.memory();
  weights.destroy();
  return { first, again, slices, most, held, running, after, end: context.memory() };
}"""


@pytest.mark.parametrize("variant", ["best", "baseline"])
def test_a_plan_computes_what_it_says(gpu: Page, variant: str) -> None:
    gpu.evaluate(SETUP, variant)
    found = gpu.evaluate(RUN, [PLAN, weights(), ROWS, text(matrices()[2]), 0])
    y = array(found["first"]).reshape(ROWS, K)
    assert np.linalg.norm(y - expected()) / np.linalg.norm(expected()) < 1e-6
    assert found["again"] == found["first"]
    assert found["slices"] == [[0, 6], [6, 6]]
    labels = {"weights", "arena:denoiser", "uniforms:denoiser", "input:denoiser", "output:denoiser"}
    assert set(found["running"]["byLabel"]) == labels
    assert found["held"] == found["after"] == {"total": 6144, "byLabel": {"weights": 6144}}
    assert found["end"] == {"total": 0, "byLabel": {}}


def test_slow_adapters_get_one_dispatch_a_submit_and_two_submits_at_once(gpu: Page) -> None:
    found = gpu.evaluate(RUN, [PLAN, weights(), ROWS, text(matrices()[2]), 1])
    y = array(found["first"]).reshape(ROWS, K)
    assert np.linalg.norm(y - expected()) / np.linalg.norm(expected()) < 1e-6
    assert [done for done, _ in found["slices"]] == [0, 1, 2, 3, 4, 5, 6]
    assert found["most"] == 2


def test_cancel_is_heard_between_slices_and_leaves_only_weights(gpu: Page) -> None:
    found = gpu.evaluate(
        """async ([plan, arrays, rows, x]) => {
          const weights = await weightsOf(arrays);
          Object.assign(pacer, { budget: 1, note: () => {} });
          const executor = await prepared(plan, weights, rows);
          executor.write("x", new Float32Array(fromBase64(x).buffer));
          const controller = new AbortController();
          const done = [];
          const onSlice = (count) => { done.push(count); if (count === 2) controller.abort(); };
          const error = await failure(() => executor.run({ signal: controller.signal, onSlice }));
          executor.destroy();
          return { error, done, memory: context.memory() };
        }""",
        [PLAN, weights(), ROWS, text(matrices()[2])],
    )
    assert found["error"]["code"] == "aborted"
    assert found["done"] == [0, 1, 2]
    assert found["memory"]["byLabel"] == {"weights": 6144}


X = ("dispatches", 0, "bindings", "x")


def changed(path: tuple, value: Any) -> dict[str, Any]:
    plan = json.loads(json.dumps(PLAN))
    at = plan
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return plan


@pytest.mark.parametrize(
    ("path", "value", "rows", "code", "said"),
    [
        (("dispatches", 0, "bindings", "weight"), "C", ROWS, "bad-bundle", "no tensor C"),
        (("dispatches", 0, "bindings"), {"x": 0, "y": 1}, ROWS, "bad-bundle", "weight"),
        (("dispatches", 0, "kernel"), "nonsense", ROWS, "bad-bundle", "kernel nonsense"),
        (("dispatches", 0, "options", "bias"), 3, ROWS, "bad-bundle", "kernel linear"),
        (("dispatches", 0, "uniforms", "x_stride"), "columns", ROWS, "bad-bundle", "unknown symbol"),
        (("dispatches", 0, "uniforms"), {"rows": "rows"}, ROWS, "bad-bundle", "x_offset"),
        (X, {"value": 0, "first": 1, "elements": 8}, ROWS, "bad-bundle", "multiple of 256 bytes"),
        (X, {"value": 0, "first": 64, "elements": ["mul", "rows", K]}, ROWS, "bad-bundle", "inside 640 bytes"),
        (X, {"value": 0, "first": ["mul", 64, "band"], "elements": 8}, ROWS, "bad-bundle", "unknown symbol"),
        (("values", 2, "arena"), 0, ROWS, "bad-bundle", "dispatch 1 (linear, B of the test)"),
        (("values", 1, "elements"), 0, ROWS, "bad-bundle", "value h"),
        (("format",), 3, 2**24, "limit-too-low", "bytes"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_and_frees_all(
    gpu: Page, path: tuple, value: Any, rows: int, code: str, said: str
) -> None:
    found = gpu.evaluate(
        """async ([plan, arrays, rows]) => {
          const weights = await weightsOf(arrays);
          const error = await failure(() => prepared(plan, weights, rows));
          weights.destroy();
          return { error, memory: context.memory() };
        }""",
        [changed(path, value), weights(), rows],
    )
    assert found["error"]["code"] == code, found["error"]
    assert said in found["error"]["message"]
    assert found["memory"]["total"] == 0


def test_wrong_inputs_are_refused_by_name(gpu: Page) -> None:
    errors = gpu.evaluate(
        """async ([plan, arrays, rows]) => {
          const executor = await prepared(plan, await weightsOf(arrays), rows);
          return [
            await failure(() => executor.write("x", new Float32Array(3))),
            await failure(() => executor.write("x", new Uint32Array(160))),
            await failure(() => executor.write("z", new Float32Array(160))),
            await failure(() => executor.read("x")),
          ];
        }""",
        [PLAN, weights(), ROWS],
    )
    assert [error["code"] for error in errors] == ["bad-bundle"] * 4
    for error, said in zip(errors, ["160 f32", "Uint32Array", "input called z", "output called x"], strict=True):
        assert said in error["message"]


def test_a_shader_that_does_not_compile_says_which_and_where(gpu: Page) -> None:
    error = gpu.evaluate(
        """async () => {
          const { Pipelines } = await load("pipelines");
          const entry = { kernel: "bad", options: {}, variant: "baseline", file: "bad.wgsl", features: [], limits: {},
            bindings: [], uniforms: [], constants: [], groups: [1, 1, 1] };
          const code = "@compute @workgroup_size(1)\\nfn main() {\\n  let x = nonsense(1);\\n}\\n";
          const broken = new Pipelines(context, [entry], async () => code);
          return failure(() => broken.get({ kernel: "bad", options: {}, constants: {} }, "denoiser"));
        }"""
    )
    assert error["code"] == "shader-compile"
    assert "kernel bad, variant baseline, bad.wgsl: line 3:" in error["message"]
    assert "let x = nonsense(1);" in error["message"]


def test_a_kernel_is_compiled_once_for_the_same_constants(gpu: Page) -> None:
    count = gpu.evaluate(
        """async ([plan, arrays, rows]) => {
          const made = [];
          const original = context.device.createComputePipelineAsync.bind(context.device);
          context.device.createComputePipelineAsync = (description) => {
            made.push(description.label);
            return original(description);
          };
          const weights = await weightsOf(arrays);
          await prepared(plan, weights, rows);
          await prepared(plan, weights, rows + 1);
          return made.length;
        }""",
        [PLAN, weights(), ROWS],
    )
    assert count == 3


def test_loss_of_the_device_reaches_whoever_waits(gpu: Page) -> None:
    error = gpu.evaluate(
        """async ([plan, arrays, rows]) => {
          const executor = await prepared(plan, await weightsOf(arrays), rows);
          context.device.destroy();
          await context.device.lost;
          return failure(async () => { await executor.run(); await executor.read("y"); });
        }""",
        [PLAN, weights(), ROWS],
    )
    assert error["code"] == "device-lost"


def test_an_uncaptured_error_surfaces_at_the_next_wait(gpu: Page) -> None:
    errors = gpu.evaluate(
        """async () => {
          context.device.createBuffer({ size: 16, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.STORAGE });
          context.device.queue.submit([]);
          await context.device.queue.onSubmittedWorkDone();
          const first = await failure(() => context.guard(Promise.resolve()));
          const second = await failure(() => context.guard(Promise.resolve()));
          return [first?.code, second];
        }"""
    )
    assert errors == ["bad-bundle", None]


VARIANTS = [
    {"kernel": "k", "variant": "baseline", "features": [], "limits": {}},
    {"kernel": "k", "variant": "wide", "features": [], "limits": {"maxComputeInvocationsPerWorkgroup": 1024}},
    {"kernel": "k", "variant": "f16", "features": ["shader-f16"], "limits": {}},
    {"kernel": "k", "variant": "f16-subgroups", "features": ["shader-f16", "subgroups"], "limits": {}},
    {"kernel": "k", "variant": "matrix", "features": ["m"], "limits": {}, "matrix": ["f16", "f32", 16, 8, 16]},
    {"kernel": "k", "variant": "int8", "features": ["dp"], "limits": {}, "converts": {"x": "int8"}, "default": False},
]
MATRICES = [{"componentType": "f16", "resultComponentType": "f32", "M": 16, "N": 8, "K": 16}]


@pytest.mark.parametrize(
    ("features", "limit", "policy", "expected"),
    [
        ([], 256, {}, "baseline"),
        ([], 1024, {}, "wide"),
        (["shader-f16"], 256, {}, "f16"),
        (["shader-f16", "subgroups"], 256, {"component": "decoder"}, "f16-subgroups"),
        (["shader-f16", "subgroups"], 1024, {"component": "encoder"}, "wide"),
        (["shader-f16"], 256, {"forceVariant": "baseline"}, "baseline"),
        (["shader-f16"], 1024, {"forceVariant": "wide"}, "wide"),
        ([], 256, {"forceVariant": "f16"}, "baseline"),
        (["shader-f16"], 1024, {"forceVariant": "int8,wide,f16"}, "wide"),
        (["m"], 256, {"matrices": MATRICES}, "matrix"),
        (["m"], 256, {"matrices": [{**MATRICES[0], "N": 16}]}, "baseline"),
        (["dp"], 256, {}, "baseline"),  # not by default
        (["dp"], 256, {"forceVariant": "int8"}, "int8"),
        (["dp"], 256, {"forceVariant": "int8", "component": "encoder"}, "baseline"),
        (["dp"], 256, {"forceVariant": "int8", "component": "decoder"}, "baseline"),
        (["shader-f16"], 1024, {"chosen": ["wide"]}, "wide"),
        ([], 1024, {"chosen": ["f16", "wide"]}, "wide"),  # the sizes rule the winner out
        ([], 1024, {"chosen": ["f16"]}, "baseline"),
        ([], 1024, {"chosen": []}, "baseline"),
    ],
)
def test_the_variant_taken_is_one_that_the_device_can_run_and_the_component_may_use(
    calculator: Page, features: list[str], limit: int, policy: dict[str, Any], expected: str
) -> None:
    script = """async ([variants, features, limits, { matrices, ...policy }]) => {
      const offer = { features: new Set(features), limits, matrices };
      return (await load("pipelines")).chooseVariant(variants, offer, policy).variant;
    }"""
    limits = {"maxComputeInvocationsPerWorkgroup": limit}
    assert calculator.evaluate(script, [VARIANTS, features, limits, {"component": "denoiser", **policy}]) == expected
