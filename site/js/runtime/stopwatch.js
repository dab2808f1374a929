// GPU time of dispatches: by timestamps where the device has them, else by the clock around one submit.

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./executor.js").Step} Step
 */

/** Whoever opens it destroys it. */
export class Stopwatch {
  /** @param {DeviceContext} context */
  constructor(context) {
    const { device } = context;
    this.context = context;
    this.querySet = null;
    if (!device.features.has("timestamp-query")) return;
    this.querySet = device.createQuerySet({ type: "timestamp", count: 2 });
    this.resolved = context.createBuffer("stopwatch", 16, GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC);
    this.staging = context.createBuffer("stopwatch", 16, GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
  }

  /**
   * Run steps one after the other, several times, in one submit.
   * @param {Step[]} steps
   * @param {number} [repeats]
   * @returns {Promise<number>} milliseconds of all of it
   */
  async time(steps, repeats = 1) {
    const { context, querySet, resolved, staging } = this;
    const { device } = context;
    const began = performance.now();
    const { finished } = await context.scoped("timing", () => {
      const encoder = device.createCommandEncoder();
      const timestampWrites = querySet ? { querySet, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 } : undefined;
      const pass = encoder.beginComputePass({ timestampWrites });
      for (let repeat = 0; repeat < repeats; repeat += 1) {
        for (const step of steps) {
          pass.setPipeline(step.pipeline);
          pass.setBindGroup(0, step.bindGroup);
          pass.dispatchWorkgroups(step.groups[0], step.groups[1], step.groups[2]);
        }
      }
      pass.end();
      if (querySet && resolved && staging) {
        encoder.resolveQuerySet(querySet, 0, 2, resolved, 0);
        encoder.copyBufferToBuffer(resolved, 0, staging, 0, 16);
      }
      device.queue.submit([encoder.finish()]);
      return { finished: device.queue.onSubmittedWorkDone() };
    });
    await context.guard(finished);
    const wall = performance.now() - began;
    if (!staging) return wall;
    await context.guard(staging.mapAsync(GPUMapMode.READ));
    const [start, end] = new BigUint64Array(staging.getMappedRange().slice(0));
    staging.unmap();
    const elapsed = Number(end - start) / 1e6;
    // Drivers have been met whose clock stands still.
    return elapsed > 0 && elapsed <= wall ? elapsed : wall;
  }

  destroy() {
    this.querySet?.destroy();
    for (const buffer of [this.resolved, this.staging]) if (buffer) this.context.destroyBuffer(buffer);
  }
}
