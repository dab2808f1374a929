// Checks and times the variants of one dispatch: all on the same operands, in as few submits and waits as there can be.

import { encodeSteps } from "./executor.js";
import { Randoms } from "./random.js";
import { Stopwatch } from "./stopwatch.js";
import { Scratch } from "./trial.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./pipelines.js").Pipelines} Pipelines
 * @typedef {import("./trial.js").Shape} Shape
 * @typedef {import("./trial.js").Source} Source
 * @typedef {{ms: number, error: number} | {failure: string}} Verdict error: relative to the baseline's outputs, Infinity
 *   where any is no number
 * @typedef {{ms: number, spent: number}} Time of one run, and of all that were made
 */

// Of the kernel `compare`.
const SHARES = 256;
const SHARE_BYTES = 12 * SHARES;
// Steps of timestamps in browsers.
const COARSE_MS = 0.1;
// Of a variant's runs.
const ENOUGH_MS = 8;
const MOST_REPEATS = 40;
const ROUNDS = 2;

/** The variants of one dispatch. Whoever opens it destroys it. */
export class Trials {
  /**
   * @param {Measurer} measurer
   * @param {Scratch} scratch
   */
  constructor(measurer, scratch) {
    this.measurer = measurer;
    this.scratch = scratch;
  }

  /**
   * Run variants once, the baseline first, and compare what they compute with what it does.
   * @param {Shape} shape
   * @param {string[]} names
   * @returns {Promise<Record<string, Verdict>>}
   */
  async check(shape, names) {
    const { scratch, measurer: { context, watch, randoms } } = this;
    /** @type {Record<string, Verdict>} */
    const found = {};
    const ready = await this.prepared(shape, names, (name, failure) => { found[name] = { failure }; });
    const written = [...scratch.operands(shape)].filter((operand) => operand[1].written);
    const { sums, staging } = await context.scoped("checking", () => {
      for (const [name, { bytes }] of written) scratch.add(`expected ${name}`, bytes);
      const size = ready.length * written.length * SHARE_BYTES;
      const usage = GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ;
      return { sums: scratch.add("sums", size), staging: scratch.add("staging", size, usage) };
    });
    const comparisons = await this.comparisons(shape, written.map(([name, { bytes }]) => ({ name, bytes })), ready.length);
    const times = await watch.timeAll(ready.map(({ steps }, at) => ({
      steps,
      // What a variant leaves unwritten, or adds to, is the same for all.
      before: (encoder) => written.forEach(([name, { bytes, contents }]) =>
        randoms.fill(encoder, scratch.place(name, bytes).buffer, bytes, contents)),
      after: (encoder) => {
        for (const [name, { bytes }] of at === 0 ? written : []) {
          const [from, to] = [scratch.place(name, bytes), scratch.place(`expected ${name}`, bytes)];
          encoder.copyBufferToBuffer(from.buffer, 0, to.buffer, 0, bytes);
        }
        const pass = encoder.beginComputePass();
        encodeSteps(pass, comparisons.slice(at * written.length, (at + 1) * written.length));
        pass.end();
        if (at + 1 === ready.length) encoder.copyBufferToBuffer(sums, 0, staging, 0, staging.size);
      },
    })));
    await context.guard(staging.mapAsync(GPUMapMode.READ));
    const values = new Float32Array(staging.getMappedRange());
    const length = values.length / ready.length;
    ready.forEach(({ name }, at) => {
      const error = relativeError(values.subarray(at * length, (at + 1) * length));
      found[name] = { ms: Math.max(times[at], COARSE_MS), error };
    });
    return found;
  }

  /**
   * Steps that compare each output of each variant with the baseline's.
   * @param {Shape} shape
   * @param {{name: string, bytes: number}[]} written
   * @param {number} count of variants
   */
  comparisons({ component }, written, count) {
    const { scratch } = this;
    const places = new Map(written.flatMap(({ name, bytes }) =>
      [name, `expected ${name}`].map((one) => [one, scratch.place(one, bytes)])));
    const dispatches = Array.from({ length: count * written.length }, (_, at) => {
      const { name, bytes } = written[at % written.length];
      places.set(`sums ${at}`, scratch.place("sums", SHARE_BYTES, at * SHARE_BYTES));
      return { ...COMPARE, uniforms: { elements: bytes / 4 },
        bindings: { found: name, expected: `expected ${name}`, y: `sums ${at}` } };
    });
    return scratch.prepare(component, dispatches, places);
  }

  /**
   * Milliseconds of variants on a shape: the least of some rounds in which each has its turn.
   * @param {Shape} shape
   * @param {string[]} names
   * @param {number} [count] of rounds
   * @returns {Promise<Record<string, Time>>}
   */
  async time(shape, names, count = ROUNDS) {
    const ready = await this.prepared(shape, names, (_, failure) => { throw new Error(failure); });
    const run = (/** @type {number[]} */ repeats) =>
      this.measurer.watch.timeAll(ready.map(({ steps }, at) => ({ steps, repeats: repeats[at] })));
    // The card wakes up, and the times say how often to repeat.
    const first = await run(names.map(() => 1));
    const repeats = first.map(repeatsOf);
    /** @type {number[][]} */
    const rounds = [];
    while (rounds.length < count) rounds.push(await run(repeats));
    return Object.fromEntries(names.map((name, at) => [name, {
      ms: Math.min(...rounds.map((times) => times[at])) / repeats[at],
      spent: rounds.reduce((sum, times) => sum + times[at], first[at]),
    }]));
  }

  /**
   * @param {Shape} shape
   * @param {string[]} names
   * @param {(name: string, failure: string) => void} onFailure of a variant, but not of the first
   */
  async prepared(shape, names, onFailure) {
    const settled = await Promise.allSettled(names.map((name) => this.scratch.steps(shape, name)));
    return settled.flatMap((one, at) => {
      if (one.status === "fulfilled") return [{ name: names[at], steps: one.value }];
      if (at === 0 || one.reason.code === "device-lost") throw one.reason;
      onFailure(names[at], one.reason instanceof Error ? one.reason.message : String(one.reason));
      return [];
    });
  }

  destroy() {
    this.scratch.destroy();
  }
}

const COMPARE = { kernel: "compare", options: {}, constants: {} };

/**
 * How often to repeat a dispatch in a round.
 * @param {number} ms that it takes
 */
function repeatsOf(ms) {
  return Math.max(1, Math.min(MOST_REPEATS, Math.floor(ENOUGH_MS / ROUNDS / Math.max(ms, COARSE_MS))));
}

/**
 * The relative error that shares of `compare` add up to.
 * @param {Float32Array} shares
 */
function relativeError(shares) {
  const [difference, norm, strange] = [0, 1, 2].map((part) =>
    shares.reduce((sum, value, at) => (at % 3 === part ? sum + value : sum), 0));
  const error = Math.sqrt(difference / (norm || 1));
  return strange > 0 || Number.isNaN(error) ? Infinity : error;
}

/** Opens trials on one device. Whoever makes it destroys it. */
export class Measurer {
  /**
   * @param {DeviceContext} context
   * @param {Pipelines} pipelines
   */
  constructor(context, pipelines) {
    this.context = context;
    this.pipelines = pipelines;
    this.watch = new Stopwatch(context);
    this.randoms = new Randoms(context);
  }

  /**
   * Compile variants side by side. What does not compile is told by their check.
   * @param {{shape: Shape, variants: string[]}[]} wanted
   */
  async compile(wanted) {
    const all = wanted.flatMap(({ shape, variants }) => [
      ...variants.map((variant) => this.pipelines.get(shape.dispatch, shape.component, variant)),
      this.pipelines.get({ ...COMPARE, uniforms: {}, bindings: {} }, shape.component),
    ]);
    await this.context.guard(Promise.allSettled(all));
  }

  /**
   * @param {Source} source
   * @param {Shape[]} shapes of one dispatch, which the trials will run
   */
  async open(source, shapes) {
    const scratch = new Scratch(this.context, this.pipelines, source);
    try {
      await scratch.open(shapes, this.randoms);
    } catch (error) {
      scratch.destroy();
      throw error;
    }
    return new Trials(this, scratch);
  }

  destroy() {
    this.watch.destroy();
    this.randoms.destroy();
  }
}
