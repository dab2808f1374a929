// What `build.py bench` calls on its page: a device, the kernels of some plans, and the time that they take on
// buffers of random numbers. A bench model is plans and tensors' shapes; it has no weights.

import { symbolsAt } from "../runtime/bands.js";
import { chooseVariants, summaryOf } from "../runtime/choice.js";
import { isSoftware, openDevice } from "../runtime/device.js";
import { Pacer } from "../runtime/executor.js";
import { fetchJson } from "../runtime/files.js";
import { Measurer } from "../runtime/measurer.js";
import { loadPipelines, possibleVariants } from "../runtime/pipelines.js";
import { prepare } from "../runtime/prepare.js";
import { fillRandom } from "../runtime/random.js";
import { bindingLimit, splitPlan } from "../runtime/rows.js";
import { Scratch, shapesOf, tensorSizes } from "../runtime/trial.js";
import { placeTensors } from "../runtime/weights.js";
import { measureCeilings } from "./ceiling.js";

/** @type {import("../runtime/device.js").DeviceContext} */
let context;
/** @type {import("../runtime/pipelines.js").Pipelines} */
let pipelines;
/** @type {Measurer} */
let measurer;
/** @type {import("../runtime/stopwatch.js").Stopwatch} */
let watch;
/** Bench models by name: {plans, components, text_tokens}. */
const models = new Map();
/** What `list` gave out, by number. */
let listed = [];

/** @param {string} [variant] forced on every kernel that has it */
export async function open(variant) {
  context = await openDevice(navigator.gpu);
  pipelines = await loadPipelines(context, new URL("../../kernels/index.json", import.meta.url).href, variant);
  measurer = new Measurer(context, pipelines);
  ({ watch } = measurer);
  const { adapter, subgroupMatrixConfigs } = context.facts;
  return { adapter, software: isSoftware(context.facts.adapter), subgroupMatrixConfigs, features: [...context.features].sort(),
    timestamps: watch.querySet !== null, browser: navigator.userAgent };
}

export const ceilings = () => measureCeilings(context);

/** @param {string} name */
async function modelOf(name) {
  if (!models.has(name)) {
    const model = await fetchJson(new URL(`../../bench/${name}.json`, import.meta.url).href);
    const limit = bindingLimit(context.device.limits);
    const tensors = {};
    for (const [component, record] of Object.entries(model.components)) {
      tensors[component] = tensorSizes(record, limit);
      record.plan = splitPlan(record.plan, record, limit);
    }
    models.set(name, { ...model, tensors });
  }
  return models.get(name);
}

/** @param {{text_tokens: number, downscale: number}} model @param {[number, number]} size pixels */
const symbolsOf = (model, size) => symbolsAt(context.device.limits, model, size);

/** Sizes that change neither what a dispatch computes nor how long it takes. */
const PLACES = /offset|first|stride|table_row/;

/**
 * The distinct dispatches of a model at a size.
 * @param {string} name
 * @param {[number, number]} size
 */
export async function list(name, size) {
  const model = await modelOf(name);
  const found = new Map();
  for (const [component, { plan }] of Object.entries(model.components)) {
    for (const shape of shapesOf(plan, symbolsOf(model, size))) {
      const { kernel, options } = shape.dispatch;
      const sizes = Object.fromEntries(Object.entries(shape.sizes).filter(([key]) => !PLACES.test(key)));
      const key = JSON.stringify([component === "encoder", kernel, options, sizes]);
      const known = found.get(key);
      if (known) known.count += 1;
      else found.set(key, { model, component, shape, sizes, count: 1 });
    }
  }
  listed = [...found.values()];
  return listed.map(({ component, shape, sizes, count }, id) => ({
    id, component, count, sizes, macs: shape.macs, kernel: shape.dispatch.kernel, options: shape.dispatch.options,
    variants: possibleVariants(pipelines.variantsOf(shape.dispatch), pipelines.offer, component).map(({ variant }) => variant),
  }));
}

/**
 * What variants compute against the baseline, on the same random operands.
 * @param {number} id of `list`
 * @param {string[]} variants
 * @returns {Promise<Record<string, import("../runtime/measurer.js").Verdict>>}
 */
export async function check(id, variants) {
  const { model, component, shape } = listed[id];
  const trials = await measurer.open({ plan: model.components[component].plan, tensors: model.tensors[component] }, [shape]);
  try {
    return await trials.check(shape, [...new Set([pipelines.variantsOf(shape.dispatch)[0].variant, ...variants])]);
  } finally {
    trials.destroy();
  }
}

/** @param {number[]} values */
const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];

/**
 * Milliseconds of one dispatch, what it converts before included.
 * @param {number} id of `list`
 * @param {string} variant
 * @param {{runs?: number, ms?: number}} [options] runs: of which the median is taken; ms: of one run, about
 */
export async function time(id, variant, { runs = 5, ms = 20 } = {}) {
  const { model, component, shape } = listed[id];
  const { plan } = model.components[component];
  const scratch = new Scratch(context, pipelines, { plan, tensors: model.tensors[component] });
  try {
    await scratch.open([shape], measurer.randoms);
    const steps = await scratch.steps(shape, variant);
    const first = await watch.time(steps); // the driver may compile in it
    const again = first > 20 * ms ? first : await watch.time(steps);
    const repeats = Math.max(1, Math.min(200, Math.round(ms / again)));
    const times = [];
    const wanted = again > 50 * ms ? Math.min(runs, 3) : runs;
    while (times.length < wanted) times.push((await watch.time(steps, repeats)) / repeats);
    const bytes = [...scratch.operands(shape).values()].reduce((sum, one) => sum + (one.stored ? 0 : one.bytes), 0);
    return { ms: median(times), least: Math.min(...times), most: Math.max(...times), repeats, bytes };
  } finally {
    scratch.destroy();
  }
}

/**
 * A component's tensors, filled with random numbers.
 * @param {import("../runtime/manifest.js").Component} component
 */
function randomWeights(component) {
  const { limits, queue } = context.device;
  const { places, sizes } = placeTensors(component, Math.min(256 * 2 ** 20, limits.maxBufferSize), bindingLimit(limits));
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
  const buffers = sizes.map((size) => context.createBuffer("weights", size, usage));
  const tensors = new Map();
  for (const { name, stored, buffer, offset, size, bytes, rows } of places) {
    const contents = stored.expands_to ? "ternary" : { U32: "words", F16: "half" }[stored.dtype] ?? "normal";
    fillRandom(queue, buffers[buffer], offset, size, contents);
    tensors.set(name, { buffer: buffers[buffer], offset, size, rowBytes: bytes / rows });
  }
  return { tensors, destroy: () => buffers.forEach((buffer) => context.destroyBuffer(buffer)) };
}

/**
 * Choose variants for a model as its page does, without remembering them.
 * @param {string} name
 * @param {[number, number]} size
 */
export async function choose(name, size) {
  const model = await modelOf(name);
  const parts = Object.entries(model.components).map(([component, { plan }]) =>
    ({ plan, tensors: model.tensors[component], symbols: symbolsOf(model, size) }));
  const choice = await chooseVariants(context, pipelines, parts);
  return { ...choice, summary: summaryOf(choice) };
}

/**
 * Run one component whole with the variants chosen or forced: time by the clock as a page sees it, and on the GPU.
 * @param {string} name
 * @param {string} component
 * @param {[number, number]} size
 * @param {{runs?: number}} [options]
 */
export async function whole(name, component, size, { runs = 5 } = {}) {
  const model = await modelOf(name);
  const record = model.components[component];
  const began = performance.now();
  await pipelines.compilePlans([record.plan], undefined, () => {});
  const compile_ms = performance.now() - began;
  const weights = randomWeights(record);
  try {
    const executor = await prepare(context, record.plan,
      { symbols: symbolsOf(model, size), tensors: weights.tensors, pipelines, pacer: new Pacer() });
    try {
      for (const [port, { buffer, bytes, value }] of executor.ports) {
        const contents = value.dtype === "f32" ? "normal" : port.includes("mask") ? "ones" : "small";
        if (value.role === "input") fillRandom(context.device.queue, buffer, 0, bytes, contents);
      }
      await context.guard(context.device.queue.onSubmittedWorkDone());
      await executor.run(); // the first ones warm up the driver and the pacer
      await executor.run();
      const start = performance.now();
      for (let run = 0; run < runs; run += 1) await executor.run({ wait: false }); // as the steps of a picture follow
      await executor.settle();
      const wall = (performance.now() - start) / runs;
      const once = wall < 2000; // one submit of all of it is safe to make
      const times = [];
      while (once && times.length < 3) times.push(await watch.time(executor.steps));
      const gpu = once ? median(times) : null;
      return { ms: wall, gpu_ms: gpu, gaps: gpu === null ? null : Math.max(0, 1 - gpu / wall), compile_ms, dispatches: executor.steps.length, peak_bytes: context.peakBytes };
    } finally {
      executor.destroy();
    }
  } finally {
    weights.destroy();
  }
}

globalThis.bench = { open, ceilings, list, check, time, choose, whole };
