// Which variant of each kernel this device runs: those that it can run are checked against the baseline, wrong ones
// are dropped, the others are timed on the plans' own shapes. What is found is remembered (remember.js).

import { choiceKey, possibleVariants } from "./pipelines.js";
import { recall, remember } from "./remember.js";
import { Stopwatch } from "./stopwatch.js";
import { openTrial, shapesOf } from "./trial.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./pipelines.js").Pipelines} Pipelines
 * @typedef {import("./pipelines.js").KernelEntry} KernelEntry
 * @typedef {import("./trial.js").Shape} Shape
 * @typedef {{plan: import("./plan.js").Plan, tensors: import("./trial.js").TensorSizes,
 *   symbols: Record<string, number>}} Part a component's plan and the sizes that it will run at, most likely
 * @typedef {{key: string, kernel: string, part: Part, shape: Shape, macs: number, variants: KernelEntry[]}} Group
 *   dispatches that run one variant: the heaviest of them, and what all compute together
 * @typedef {{kernel: string, variant: string, key: string, reason: string}} Rejection
 * @typedef {{variants: Record<string, string>, kernels: Record<string, string[]>, rejected: Rejection[],
 *   times: Record<string, Record<string, number>>}} Choice variants: by choiceKey; kernels: names of each kernel's,
 *   those that do most first; times: milliseconds of what was timed, by choiceKey and variant
 */

const FORMAT = 1; // of what is remembered
const BUDGET_MS = 300; // of GPU time for all timings
const LEAST_SHARE = 0.03; // of all multiply-adds: a group below it is not timed, it takes its kernel's winner
// Relative; of variants that state none.
const EXACT_ERROR = 1e-4;
const SHORT_MS = 0.5;
const REPEATS = 20;
const SMALL = { text_tokens: 48, image_tokens: 45, rows: 5, columns: 9 };

/**
 * Dispatches by the variant that they share, the heaviest groups first.
 * @param {Pipelines} pipelines
 * @param {Part[]} parts
 * @returns {Group[]}
 */
export function groupsOf(pipelines, parts) {
  /** @type {Map<string, Group>} */
  const groups = new Map();
  for (const part of parts) {
    const { component } = part.plan;
    /** @param {Shape} shape */
    const candidates = ({ dispatch }) => possibleVariants(pipelines.variantsOf(dispatch), pipelines.offer, component)
      .filter((variant) => variant.default !== false);
    for (const shape of shapesOf(part.plan, part.symbols)) {
      const key = choiceKey(shape.dispatch, component);
      const group = groups.get(key);
      if (!group) {
        const { macs, dispatch: { kernel } } = shape;
        groups.set(key, { key, kernel, part, shape, macs, variants: candidates(shape) });
        continue;
      }
      group.macs += shape.macs;
      if (shape.macs > group.shape.macs) Object.assign(group, { part, shape, variants: candidates(shape) });
    }
  }
  return [...groups.values()].sort((a, b) => b.macs - a.macs);
}

/**
 * The dispatch of a shape at other sizes of the plan; the shape itself where it does not exist there.
 * @param {Part} part
 * @param {Shape} shape
 * @param {Record<string, number>} symbols
 */
function resized(part, shape, symbols) {
  const all = { ...part.symbols, ...symbols };
  return shapesOf(part.plan, all).find(({ index }) => index === shape.index) ?? shape;
}

/**
 * Relative error of outputs; Infinity if any is no number.
 * @param {Float32Array[]} found
 * @param {Float32Array[]} expected
 */
export function relativeError(found, expected) {
  let [difference, norm] = [0, 0];
  expected.forEach((values, at) => values.forEach((value, index) => {
    difference += (found[at][index] - value) ** 2;
    norm += value ** 2;
  }));
  const error = Math.sqrt(difference / (norm || 1));
  return Number.isNaN(error) ? Infinity : error;
}

/** Measures variants on one device. */
class Measurer {
  /**
   * @param {DeviceContext} context
   * @param {Pipelines} pipelines
   */
  constructor(context, pipelines) {
    this.context = context;
    this.pipelines = pipelines;
    this.watch = new Stopwatch(context);
  }

  /**
   * Outputs and time of a shape.
   * @param {Part} part
   * @param {Shape} shape
   * @param {string} variant
   */
  async check({ plan, tensors }, shape, variant) {
    const trial = await openTrial(this.context, this.pipelines, { plan, shape, tensors, variant });
    try {
      // Drivers finish compiling in the first run.
      await this.watch.time(trial.executor.steps);
      let ms = await this.watch.time(trial.executor.steps);
      if (ms < SHORT_MS) ms = (await this.watch.time(trial.executor.steps, REPEATS)) / REPEATS; // clocks are coarse
      const outputs = [];
      for (const name of trial.outputs) outputs.push(new Float32Array(await trial.executor.read(name)));
      return { ms, outputs };
    } finally {
      trial.destroy();
    }
  }

  /**
   * Begin to compile all candidates, side by side.
   * @param {Group[]} groups
   */
  begin(groups) {
    for (const { shape, variants } of groups) {
      for (const { variant } of variants) {
        this.pipelines.get(shape.dispatch, shape.component, variant).catch(() => {}); // the check throws it again
      }
    }
  }

  /**
   * Milliseconds of a shape, the least of two runs.
   * @param {Part} part
   * @param {Shape} shape
   * @param {string} variant
   * @param {number} repeats
   */
  async time({ plan, tensors }, shape, variant, repeats) {
    const trial = await openTrial(this.context, this.pipelines, { plan, shape, tensors, variant, fill: false });
    try {
      const { steps } = trial.executor;
      const times = [await this.watch.time(steps, repeats), await this.watch.time(steps, repeats)];
      return { ms: Math.min(...times) / repeats, spent: times[0] + times[1] };
    } finally {
      trial.destroy();
    }
  }

  destroy() {
    this.watch.destroy();
  }
}

/**
 * Whether a CPU computes.
 * @param {DeviceContext} context
 */
export function isSoftware({ facts: { adapter } }) {
  return adapter.fallback || /swiftshader|llvmpipe/i.test(Object.values(adapter).join(" "));
}

/**
 * Choose a variant for every kernel of some plans.
 * @param {DeviceContext} context
 * @param {Pipelines} pipelines its `choice` is filled
 * @param {Part[]} parts
 * @param {{signal?: AbortSignal, measurer?: Pick<Measurer, "begin" | "check" | "time" | "destroy">}} [options] measurer: for tests
 * @returns {Promise<Choice>}
 */
export function chooseVariants(context, pipelines, parts, options = {}) {
  return chooseAmong(context, pipelines, groupsOf(pipelines, parts), options);
}

/**
 * @param {DeviceContext} context
 * @param {Pipelines} pipelines
 * @param {Group[]} groups
 * @param {{signal?: AbortSignal, measurer?: Pick<Measurer, "begin" | "check" | "time" | "destroy">}} options
 * @returns {Promise<Choice>}
 */
async function chooseAmong(context, pipelines, groups, { signal, measurer }) {
  // Where a CPU computes, the other variants take longer to compile than they could save: barriers cost much there.
  const open = isSoftware(context) ? [] : groups.filter(({ variants, macs }) => variants.length > 1 && macs > 0);
  const total = groups.reduce((sum, { macs }) => sum + macs, 0);
  /** @type {Choice} */
  const choice = { variants: {}, kernels: {}, rejected: [], times: {} };
  const tool = measurer ?? new Measurer(context, pipelines);
  let budget = BUDGET_MS;
  /** Winner by kernel, of its heaviest group. @type {Map<string, string>} */
  const winners = new Map();
  try {
    tool.begin(open.filter(({ macs }) => macs >= LEAST_SHARE * total));
    for (const [order, group] of open.entries()) {
      signal?.throwIfAborted();
      const { key, kernel, variants } = group;
      const inherited = winners.get(kernel);
      const worth = group.macs >= LEAST_SHARE * total || inherited === undefined;
      if (inherited !== undefined && !worth) {
        const known = variants.find(({ variant }) => variant === inherited);
        const name = known && (inherited === variants[0].variant || await isRight(tool, group, known, choice)) ? inherited
          : variants[0].variant;
        choice.variants[key] = name;
        continue;
      }
      const spent = await chooseOne(tool, group, budget / (open.length - order), choice);
      budget = Math.max(0, budget - spent);
      winners.set(kernel, choice.variants[key]);
    }
  } finally {
    tool.destroy();
  }
  for (const { kernel, variants, key, macs } of groups) {
    if (macs === 0) continue;
    const name = choice.variants[key] ?? variants[0].variant;
    choice.kernels[kernel] = [...new Set([...(choice.kernels[kernel] ?? []), name])];
  }
  applyChoice(pipelines, choice);
  return choice;
}

/**
 * Make pipelines follow a choice. Where a shape's sizes rule the winner out, the next of those that were timed serves.
 * @param {Pipelines} pipelines
 * @param {Choice} choice
 */
export function applyChoice(pipelines, choice) {
  for (const [key, variant] of Object.entries(choice.variants)) {
    const others = Object.entries(choice.times[key] ?? {}).filter(([name]) => name !== variant).sort((a, b) => a[1] - b[1]);
    pipelines.choice.set(key, [variant, ...others.map(([name]) => name)]);
  }
  pipelines.isChosen = true;
}

/**
 * Whether a variant computes what the baseline does; else it is reported.
 * @param {Pick<Measurer, "check">} tool
 * @param {Group} group
 * @param {KernelEntry} variant
 * @param {Choice} choice
 * @param {{ms: number, outputs: Float32Array[]}} [expected] of the baseline
 */
async function isRight(tool, { key, kernel, part, shape, variants }, variant, choice, expected) {
  const small = resized(part, shape, SMALL);
  const reject = (/** @type {string} */ reason) => {
    choice.rejected.push({ kernel, variant: variant.variant, key, reason });
    console.warn(`kernel ${key}: variant ${variant.variant} is left out: ${reason}`);
    return null;
  };
  try {
    const right = expected ?? await tool.check(part, small, variants[0].variant);
    const found = await tool.check(part, small, variant.variant);
    const error = relativeError(found.outputs, right.outputs);
    const most = variant.error ?? EXACT_ERROR;
    return error <= most ? found : reject(`expected an error of at most ${most}, found ${error.toPrecision(3)}`);
  } catch (error) {
    if (/** @type {{code?: string}} */ (error).code === "device-lost") throw error;
    return reject(error instanceof Error ? error.message : String(error));
  }
}

/**
 * Check and time the variants of one group.
 * @param {Pick<Measurer, "check" | "time">} tool
 * @param {Group} group
 * @param {number} budget milliseconds for all its variants
 * @param {Choice} choice gets the winner
 * @returns {Promise<number>} milliseconds spent
 */
async function chooseOne(tool, group, budget, choice) {
  const { key, part, shape, variants } = group;
  const small = resized(part, shape, SMALL);
  const baseline = await tool.check(part, small, variants[0].variant);
  let spent = 2 * baseline.ms;
  const candidates = [{ variant: variants[0], ms: baseline.ms }];
  for (const variant of variants.slice(1)) {
    const found = await isRight(tool, group, variant, choice, baseline);
    if (!found) continue;
    spent += 2 * found.ms;
    candidates.push({ variant, ms: found.ms });
  }
  // A candidate that is several times slower on few rows is not worth a long run; the small case decides.
  const fastest = Math.min(...candidates.map(({ ms }) => ms));
  const rivals = candidates.filter(({ ms }) => ms <= 4 * fastest);
  /** @type {Record<string, number>} */
  const times = Object.fromEntries(rivals.map(({ variant, ms }) => [variant.variant, ms]));
  if (rivals.length > 1) {
    const slot = Math.max(0, budget - spent) / rivals.length / 2;
    const sized = fitting(part, shape, small, fastest, slot);
    if (sized) for (const { variant, ms } of rivals) {
      const estimate = Math.max(ms * (sized.macs / small.macs), 1e-3);
      const repeats = Math.max(1, Math.min(20, Math.floor(slot / estimate)));
      const found = await tool.time(part, sized, variant.variant, repeats);
      times[variant.variant] = found.ms;
      spent += found.spent;
    }
  }
  const names = rivals.map(({ variant }) => variant.variant);
  choice.times[key] = times;
  choice.variants[key] = names.reduce((best, name) => (times[name] < times[best] ? name : best));
  return spent;
}

/**
 * The shape, with as many rows as can be timed within a slot; null if those are hardly more than the small case's.
 * @param {Part} part
 * @param {Shape} shape
 * @param {Shape} small
 * @param {number} ms of the small case
 * @param {number} slot milliseconds
 * @returns {Shape | null}
 */
function fitting(part, shape, small, ms, slot) {
  for (let cut = 1; cut <= 64; cut *= 2) {
    const symbols = Object.fromEntries(Object.keys(SMALL).map((name) =>
      [name, Math.max(SMALL[/** @type {keyof typeof SMALL} */ (name)], Math.ceil((part.symbols[name] ?? 0) / cut))]));
    const candidate = cut === 1 ? shape : resized(part, shape, symbols);
    if (candidate.macs <= 2 * small.macs) return null;
    if (ms * (candidate.macs / small.macs) <= slot) return candidate;
  }
  return null;
}

/**
 * The choice for some plans on this device: the one remembered from an earlier visit, else one made now. It depends
 * on the adapter, the browser, the kernels' texts and the plans, and is made again when any of them changes.
 * @param {DeviceContext} context
 * @param {Pipelines} pipelines its `choice` is filled
 * @param {Part[]} parts
 * @param {AbortSignal} [signal]
 * @returns {Promise<Choice>}
 */
export async function findChoice(context, pipelines, parts, signal) {
  const groups = groupsOf(pipelines, parts);
  const facts = {
    format: FORMAT,
    browser: navigator.userAgent,
    adapter: context.facts.adapter,
    groups: groups.map(({ key, variants, shape }) => [key, variants.map(({ file }) => file), shape.sizes]),
  };
  const key = JSON.stringify(facts);
  const known = /** @type {Choice | null} */ (await recall(key));
  if (known) {
    applyChoice(pipelines, known);
    return known;
  }
  const choice = await chooseAmong(context, pipelines, groups, { signal });
  await remember(key, choice);
  return choice;
}

/** What people call the kernels that have variants. @type {Record<string, string>} */
const NAMES = { linear: "matmul", conv2d: "convolution" };

/**
 * A choice in one line, such as "matmul: f16, attention: f32_staged + f32".
 * @param {Pick<Choice, "kernels">} choice
 */
export function summaryOf({ kernels }) {
  return Object.entries(kernels).map(([kernel, names]) => `${NAMES[kernel] ?? kernel}: ${names.join(" + ")}`).join(", ");
}
