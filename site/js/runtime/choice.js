// Which variant of each kernel this device runs: those that it can run are checked against the baseline, wrong ones
// are dropped, the others are timed on the plans' own shapes. What is found is remembered (remember.js).

import { isSoftware } from "./device.js";
import { Measurer } from "./measurer.js";
import { choiceKey, possibleVariants } from "./pipelines.js";
import { recall, remember } from "./remember.js";
import { shapesOf } from "./trial.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./pipelines.js").Pipelines} Pipelines
 * @typedef {import("./pipelines.js").KernelEntry} KernelEntry
 * @typedef {import("./trial.js").Shape} Shape
 * @typedef {{plan: import("./plan.js").Plan, tensors: import("./trial.js").TensorSizes,
 *   symbols: Record<string, number>, largest?: Record<string, number>}} Part a component's plan, the sizes that it will run
 *   at, most likely, and the largest that are offered
 * @typedef {{key: string, family: string, kernel: string, part: Part, shape: Shape, macs: number,
 *   variants: KernelEntry[]}} Group dispatches that run one variant: the heaviest of them, and what all compute together;
 *   family: the key without the epilogue, which takes little of the time
 * @typedef {{kernel: string, variant: string, key: string, reason: string}} Rejection
 * @typedef {{variants: Record<string, string>, kernels: Record<string, string[]>, rejected: Rejection[],
 *   times: Record<string, Record<string, number>>, ms: {compile: number, measure: number}}} Choice variants: by
 *   choiceKey; kernels: names of each kernel's, those that do most first; times: milliseconds of what was timed, by
 *   choiceKey and variant; ms: that choosing took
 * @typedef {Pick<import("./measurer.js").Trials, "check" | "time" | "destroy">} Trials
 * @typedef {{compile: Measurer["compile"], destroy: () => void,
 *   open: (source: import("./trial.js").Source, shapes: Shape[]) => Promise<Trials>}} Tool a Measurer, or a test's
 */

// Of what is remembered.
const FORMAT = 2;
// Of GPU time for all timings.
const BUDGET_MS = 300;
// Of all multiply-adds: a group below it is not timed, it takes another's winner. Each variant compiled costs time.
const LEAST_SHARE = 0.04;
// Relative; of variants that state none.
const EXACT_ERROR = 1e-4;
// Runs of a timing, at least.
const FEW = 3;
// A variant that is so many times slower than the fastest on few rows is not worth a long run.
const HOPELESS = 4;
/** More than a tile of 128 rows and a part of one, in every part of a plan. */
const SMALL = { text_tokens: 133, image_tokens: 130, rows: 5, columns: 9 };

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
    const shapes = shapesOf(part.plan, part.symbols);
    const largest = part.largest ? shapesOf(part.plan, part.largest) : shapes;
    for (const usual of shapes) {
      // Attention's work grows with the square of the tokens: it is timed where it weighs most.
      const shape = usual.dispatch.kernel === "attention" ? sameDispatch(largest, usual) : usual;
      const key = choiceKey(shape.dispatch, component);
      const group = groups.get(key);
      if (!group) {
        const { macs, dispatch: { kernel, constants, options: { epilogue, ...options } } } = shape;
        const family = choiceKey({ kernel, options, constants }, component);
        groups.set(key, { key, family, kernel, part, shape, macs, variants: candidates(shape) });
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
 * @param {Shape[]} shapes
 * @param {Shape} shape
 */
function sameDispatch(shapes, shape) {
  return shapes.find(({ index }) => index === shape.index) ?? shape;
}

/**
 * @param {Part} part
 * @param {Shape} shape
 * @param {Record<string, number>} symbols
 */
function resized(part, shape, symbols) {
  return sameDispatch(shapesOf(part.plan, { ...part.symbols, ...symbols }), shape);
}

/**
 * Choose a variant for every kernel of some plans.
 * @param {DeviceContext} context
 * @param {Pipelines} pipelines its `choice` is filled
 * @param {Part[]} parts
 * @param {{signal?: AbortSignal, measurer?: Tool}} [options] measurer: for tests
 * @returns {Promise<Choice>}
 */
export function chooseVariants(context, pipelines, parts, options = {}) {
  return chooseAmong(context, pipelines, groupsOf(pipelines, parts), options);
}

/**
 * @param {DeviceContext} context
 * @param {Pipelines} pipelines
 * @param {Group[]} groups
 * @param {{signal?: AbortSignal, measurer?: Tool}} options
 * @returns {Promise<Choice>}
 */
async function chooseAmong(context, pipelines, groups, { signal, measurer }) {
  const began = performance.now();
  // Where a CPU computes, most variants take longer to compile than they could save: barriers cost much there.
  const software = isSoftware(context.facts.adapter);
  const open = software ? [] : groups.filter(({ variants, macs }) => variants.length > 1 && macs > 0);
  const total = groups.reduce((sum, { macs }) => sum + macs, 0);
  /** @type {Choice} */
  const choice = { variants: {}, kernels: {}, rejected: [], times: {}, ms: { compile: 0, measure: 0 } };
  for (const { key, part, shape } of software ? groups : []) {
    const variants = possibleVariants(pipelines.variantsOf(shape.dispatch), pipelines.offer, part.plan.component);
    const own = variants.find((variant) => variant.software);
    if (own) choice.variants[key] = own.variant;
  }
  const tool = measurer ?? new Measurer(context, pipelines);
  /** @type {(groups: Group[], names: (group: Group) => string[]) => Promise<void>} */
  const compile = async (some, names) => {
    const start = performance.now();
    await tool.compile(some.map((group) => ({ shape: group.shape, variants: names(group) })));
    choice.ms.compile += performance.now() - start;
  };
  /** @type {(some: Group[], group: Group) => Group | undefined} of its kernel in its component that with the nearest N */
  const nearestOf = (some, { kernel, shape, part: { plan: { component } } }) => {
    /** @param {Group} other */
    const distance = (other) => Math.abs(Math.log((other.shape.sizes.N ?? 1) / (shape.sizes.N ?? 1)));
    const like = some.filter((other) => other.kernel === kernel && other.part.plan.component === component);
    return like.reduce((best, other) => (distance(other) < distance(best) ? other : best), like[0]);
  };
  /** @param {Group} group */
  const isTimed = (group) => group === open.find(({ kernel, part: { plan } }) =>
    kernel === group.kernel && plan.component === group.part.plan.component) ||
    (group.macs >= LEAST_SHARE * total && group === open.find(({ family }) => family === group.family));
  const [timed, others] = [open.filter(isTimed), open.filter((group) => !isTimed(group))];
  try {
    await compile(timed, namesOf);
    let budget = BUDGET_MS;
    let macs = timed.reduce((sum, group) => sum + group.macs, 0);
    for (const [order, group] of timed.entries()) {
      signal?.throwIfAborted();
      const share = Math.max(group.macs / macs, 0.5 / (timed.length - order));
      budget -= await chooseOne(tool, group, Math.max(0, budget) * share, choice);
      macs -= group.macs;
    }
    // The best of what the family's heaviest group, else the nearest in size, tried that this group has, if it is right
    // here, too.
    /** @param {Group} group */
    const pair = (group) => {
      const [baseline, ...names] = namesOf(group);
      const like = /** @type {Group} */ (timed.find(({ family }) => family === group.family) ?? nearestOf(timed, group));
      const best = orderOf(choice, like.key).find((name) => name === baseline || names.includes(name));
      return best && best !== baseline ? [baseline, best] : [baseline];
    };
    for (const group of others) choice.variants[group.key] = pair(group)[0];
    const inheriting = others.filter((group) => pair(group).length > 1);
    await compile(inheriting, pair);
    for (const group of inheriting) {
      signal?.throwIfAborted();
      const small = resized(group.part, group.shape, SMALL);
      const trials = await tool.open(group.part, [small]);
      try {
        const right = await checkAll(trials, group, small, pair(group), choice);
        choice.variants[group.key] = /** @type {string} */ (Object.keys(right).at(-1));
      } finally {
        trials.destroy();
      }
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
  choice.ms.measure = performance.now() - began - choice.ms.compile;
  return choice;
}

/**
 * What was timed for a key, the fastest first.
 * @param {Choice} choice
 * @param {string} key
 */
function orderOf({ variants, times }, key) {
  const others = Object.entries(times[key] ?? {}).filter(([name]) => name !== variants[key]);
  return [variants[key], ...others.sort((a, b) => a[1] - b[1]).map(([name]) => name)];
}

/**
 * Make pipelines follow a choice. Where a shape's sizes rule the winner out, the next of those that were timed serves.
 * @param {Pipelines} pipelines
 * @param {Choice} choice
 */
export function applyChoice(pipelines, choice) {
  for (const key of Object.keys(choice.variants)) pipelines.choice.set(key, orderOf(choice, key));
  pipelines.isChosen = true;
}

/** @param {Group} group @returns {string[]} baseline first */
function namesOf({ variants }) {
  return variants.map(({ variant }) => variant);
}

/**
 * Milliseconds of the variants that compute what the baseline does; others are reported.
 * @param {Trials} trials
 * @param {Group} group
 * @param {Shape} small
 * @param {string[]} names the baseline first
 * @param {Choice} choice
 * @returns {Promise<Record<string, number>>}
 */
async function checkAll(trials, { key, kernel, variants }, small, names, choice) {
  const verdicts = await trials.check(small, names);
  /** @type {Record<string, number>} */
  const right = {};
  for (const [at, name] of names.entries()) {
    const verdict = verdicts[name];
    const most = variants.find(({ variant }) => variant === name)?.error ?? EXACT_ERROR;
    if ("ms" in verdict && (at === 0 || verdict.error <= most)) {
      right[name] = verdict.ms;
      continue;
    }
    const reason = "failure" in verdict ? verdict.failure
      : `expected an error of at most ${most}, found ${verdict.error.toPrecision(3)}`;
    choice.rejected.push({ kernel, variant: name, key, reason });
    console.warn(`kernel ${key}: variant ${name} is left out: ${reason}`);
  }
  return right;
}

/**
 * Check and time the variants of one group.
 * @param {Tool} tool
 * @param {Group} group
 * @param {number} budget milliseconds for all its variants
 * @param {Choice} choice gets the winner
 * @returns {Promise<number>} milliseconds spent
 */
async function chooseOne(tool, group, budget, choice) {
  const { key, part, shape } = group;
  const small = resized(part, shape, SMALL);
  const trials = await tool.open(part, [small, shape]);
  try {
    let times = await checkAll(trials, group, small, namesOf(group), choice);
    let spent = total(times);
    times = hopeful(times);
    /** @type {(sized: Shape, rounds?: number) => Promise<void>} */
    const time = async (sized, rounds) => {
      for (const [name, found] of Object.entries(await trials.time(sized, Object.keys(times), rounds))) {
        times[name] = found.ms;
        spent += found.spent;
      }
    };
    const isOpen = Object.keys(times).length > 1;
    // The check ran once, by a clock that is coarse for a fast device. What more rows take follows from a closer look.
    if (isOpen && FEW * total(times) <= budget - spent) {
      await time(small, 1);
      times = hopeful(times);
    }
    const sized = isOpen ? fitting(group, small, total(times), (budget - spent) / FEW) : null;
    if (sized) await time(sized);
    choice.times[key] = times;
    choice.variants[key] = Object.keys(times).reduce((best, name) => (times[name] < times[best] ? name : best));
    return spent;
  } finally {
    trials.destroy();
  }
}

/** @param {Record<string, number>} times */
function total(times) {
  return Object.values(times).reduce((sum, ms) => sum + ms, 0);
}

/** @param {Record<string, number>} times @returns those that are not hopelessly slow */
function hopeful(times) {
  const fastest = Math.min(...Object.values(times));
  return Object.fromEntries(Object.entries(times).filter(([, ms]) => ms <= HOPELESS * fastest));
}

/**
 * A group's shape, with as many rows as can run once within a slot; null if those are hardly more than the small case's.
 * @param {Group} group
 * @param {Shape} small
 * @param {number} ms of the small case
 * @param {number} slot milliseconds
 * @returns {Shape | null}
 */
function fitting({ part, shape }, small, ms, slot) {
  for (let cut = 1; cut <= 64; cut *= 2) {
    const symbols = Object.fromEntries(Object.entries(SMALL).map(([name, least]) =>
      [name, Math.max(least, Math.ceil((shape.symbols[name] ?? 0) / cut))]));
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
