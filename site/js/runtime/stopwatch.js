// GPU time of dispatches: by timestamps where the device has them, else by the clock around each submit.

import { encodeSteps } from "./executor.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./executor.js").Step} Step
 * @typedef {{steps: Step[], repeats?: number, before?: (encoder: GPUCommandEncoder) => void,
 *   after?: (encoder: GPUCommandEncoder) => void}} Run steps one after the other, several times; what is encoded
 *   before and after them is not timed
 */

const MOST_RUNS = 32;

/** Whoever opens it destroys it. */
export class Stopwatch {
  /** @param {DeviceContext} context */
  constructor(context) {
    const { device } = context;
    this.context = context;
    this.querySet = null;
    if (!device.features.has("timestamp-query")) return;
    const size = 16 * MOST_RUNS;
    this.querySet = device.createQuerySet({ type: "timestamp", count: 2 * MOST_RUNS });
    this.resolved = context.createBuffer("stopwatch", size, GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC);
    this.staging = context.createBuffer("stopwatch", size, GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
  }

  /**
   * Milliseconds of some steps, all repeats together.
   * @param {Step[]} steps
   * @param {number} [repeats]
   */
  async time(steps, repeats = 1) {
    const [ms] = await this.timeAll([{ steps, repeats }]);
    return ms;
  }

  /**
   * Milliseconds of each of several runs, which follow each other without a wait where there are timestamps.
   * @param {Run[]} runs
   * @returns {Promise<number[]>}
   */
  async timeAll(runs) {
    if (runs.length > MOST_RUNS) {
      return [...await this.timeAll(runs.slice(0, MOST_RUNS)), ...await this.timeAll(runs.slice(MOST_RUNS))];
    }
    const { context, querySet, resolved, staging } = this;
    const { device } = context;
    if (!querySet || !resolved || !staging) return this.byClock(runs);
    const began = performance.now();
    const { mapped } = await context.scoped("timing", () => {
      runs.forEach((run, at) => this.submit(run,
        { querySet, beginningOfPassWriteIndex: 2 * at, endOfPassWriteIndex: 2 * at + 1 }));
      const encoder = device.createCommandEncoder();
      encoder.resolveQuerySet(querySet, 0, 2 * runs.length, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, staging, 0, 16 * runs.length);
      device.queue.submit([encoder.finish()]);
      const promise = staging.mapAsync(GPUMapMode.READ);
      promise.catch(() => {}); // whoever waits for it hears of it
      return { mapped: promise };
    });
    await context.guard(mapped);
    const wall = performance.now() - began;
    const stamps = new BigUint64Array(staging.getMappedRange().slice(0));
    staging.unmap();
    const times = runs.map((_, at) => Number(stamps[2 * at + 1] - stamps[2 * at]) / 1e6);
    const total = times.reduce((sum, ms) => sum + ms, 0);
    // Drivers have been met whose clock stands still.
    return total > 0 && total <= wall && Math.min(...times) >= 0 ? times : this.byClock(runs);
  }

  /**
   * @param {Run[]} runs
   * @returns {Promise<number[]>}
   */
  async byClock(runs) {
    const { context } = this;
    const times = [];
    for (const run of runs) {
      const began = performance.now();
      const { finished } = await context.scoped("timing", () => {
        this.submit(run);
        return { finished: context.device.queue.onSubmittedWorkDone() };
      });
      await context.guard(finished);
      times.push(performance.now() - began);
    }
    return times;
  }

  /**
   * @param {Run} run
   * @param {GPUComputePassTimestampWrites} [timestampWrites]
   */
  submit({ steps, repeats = 1, before, after }, timestampWrites) {
    const { device } = this.context;
    const encoder = device.createCommandEncoder();
    before?.(encoder);
    const pass = encoder.beginComputePass({ timestampWrites });
    for (let repeat = 0; repeat < repeats; repeat += 1) encodeSteps(pass, steps);
    pass.end();
    after?.(encoder);
    device.queue.submit([encoder.finish()]);
  }

  destroy() {
    this.querySet?.destroy();
    for (const buffer of [this.resolved, this.staging]) if (buffer) this.context.destroyBuffer(buffer);
  }
}
