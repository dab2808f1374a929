// Runs a prepared plan (prepare.js). Dispatches are encoded in slices short enough that the screen stays
// alive and a cancel is heard between two of them.

import { BitbrushError, throwIfAborted } from "./errors.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {import("./plan.js").PlanValue} PlanValue
 * @typedef {{pipeline: GPUComputePipeline, bindGroup: GPUBindGroup, groups: number[], work: number}} Step
 *   one dispatch, ready to encode; work: multiply-adds, roughly
 */

const SLICE_MS = 50;
const CERTAIN_MS = 10; // a shorter slice is mostly waiting, and tells little of the adapter's rate
// Work of a dispatch that is never divided: 12 ms on an adapter 50 times slower than a fast one.
const LEAST_PART = 4e9;
// So that the GPU computes one slice while the next is encoded.
const IN_FLIGHT = 2;

/**
 * Finds out how much work fits in one short submit on this machine; shared by all executors.
 */
export class Pacer {
  constructor() {
    // About 0.1 s on the slowest adapter met, a software one.
    this.budget = 2e8;
    /** Least work a millisecond of late. */
    this.rate = Infinity;
    this.leastPart = LEAST_PART;
  }

  /** Work of the longest dispatch that is not to be divided (slices.js); Infinity until the adapter's rate is known. */
  get longest() {
    return Math.max(this.leastPart, this.rate * SLICE_MS);
  }

  /**
   * @param {number} work of a slice that just ran
   * @param {number} ms that it took
   */
  note(work, ms) {
    if (ms < CERTAIN_MS) {
      if (work > this.budget / 4) this.budget = Math.min(4 * this.budget, this.rate * SLICE_MS);
      return;
    }
    this.rate = Math.min(1.25 * this.rate, work / ms);
    this.budget = Math.max(1e6, Math.min(4 * this.budget, this.rate * SLICE_MS));
  }
}

/** A plan at fixed sizes, with its buffers. Whoever prepares it destroys it. */
export class Executor {
  /**
   * @param {DeviceContext} context
   * @param {Plan} plan
   * @param {Pacer} pacer
   */
  constructor(context, plan, pacer) {
    this.context = context;
    this.plan = plan;
    this.pacer = pacer;
    /** @type {Step[]} */
    this.steps = [];
    /** @type {GPUBuffer[]} */
    this.owned = [];
    /** Slices that the queue has, oldest first.
     * @type {{finished: Promise<unknown>, work: number, began: number, report: () => void}[]} */
    this.inFlight = [];
    this.lastEnd = 0;
    /** Inputs and outputs by name. @type {Map<string, {buffer: GPUBuffer, bytes: number, value: PlanValue}>} */
    this.ports = new Map();
  }

  /**
   * @param {string} label
   * @param {number} size
   * @param {GPUBufferUsageFlags} usage
   */
  own(label, size, usage) {
    const buffer = this.context.createBuffer(`${label}:${this.plan.component}`, size, usage);
    this.owned.push(buffer);
    return buffer;
  }

  /**
   * @param {string} name
   * @param {"input" | "output"} role
   */
  port(name, role) {
    const port = this.ports.get(name);
    if (port?.value.role === role) return port;
    throw new BitbrushError("bad-bundle", `plan ${this.plan.component}: expected an ${role} called ${name}, found none`);
  }

  /**
   * Whether the plan gives this output.
   * @param {string} name
   */
  hasOutput(name) {
    return this.ports.get(name)?.value.role === "output";
  }

  /**
   * Fill an input.
   * @param {string} name
   * @param {Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>} data exactly as many elements as the plan says
   */
  write(name, data) {
    const { buffer, bytes, value } = this.port(name, "input");
    const wanted = value.dtype === "u32" ? "Uint32Array" : "Float32Array";
    if (data.constructor.name !== wanted || data.byteLength !== bytes) {
      throw new BitbrushError("bad-bundle", `plan ${this.plan.component}, input ${name}: expected ${bytes / 4} ` +
        `${value.dtype} elements, found ${data.length} of a ${data.constructor.name}`);
    }
    this.context.device.queue.writeBuffer(buffer, 0, data);
  }

  /**
   * Fill an input from another buffer.
   * @param {string} name
   * @param {GPUBuffer} source
   * @param {number} offset bytes
   * @param {number} elements exactly as many as the plan says
   */
  async copy(name, source, offset, elements) {
    const { buffer, bytes } = this.port(name, "input");
    const { device } = this.context;
    if (4 * elements !== bytes) {
      throw new BitbrushError("bad-bundle", `plan ${this.plan.component}, input ${name}: expected ${bytes / 4} ` +
        `elements, found ${elements}`);
    }
    await this.context.scoped(`filling ${name}`, () => {
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(source, offset, buffer, 0, bytes);
      device.queue.submit([encoder.finish()]);
    });
  }

  /**
   * Copy an output back.
   * @param {string} name
   * @returns {Promise<ArrayBuffer>}
   */
  async read(name) {
    const finish = await this.startRead(name);
    return finish();
  }

  /**
   * Begin to copy an output back; what follows in the queue may overwrite it.
   * @param {string} name
   * @returns {Promise<() => Promise<ArrayBuffer>>} to be called once
   */
  async startRead(name) {
    const { buffer, bytes } = this.port(name, "output");
    const { device } = this.context;
    const { staging, mapped } = await this.context.scoped(`reading ${name}`, () => {
      const made = this.own("readback", bytes, GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(buffer, 0, made, 0, bytes);
      device.queue.submit([encoder.finish()]);
      const promise = made.mapAsync(GPUMapMode.READ);
      promise.catch(() => {}); // finish() throws it
      return { staging: made, mapped: promise };
    });
    return async () => {
      await this.context.guard(mapped);
      const copy = staging.getMappedRange().slice(0);
      this.owned.splice(this.owned.indexOf(staging), 1);
      this.context.destroyBuffer(staging);
      return copy;
    };
  }

  /**
   * Run all dispatches.
   * @param {{signal?: AbortSignal, onSlice?: (done: number, total: number) => void, wait?: boolean}} [options]
   *   wait: false leaves the last slice running; what follows in the queue sees its results, and the next run or
   *   `settle` reports it
   */
  async run({ signal, onSlice = () => {}, wait = true } = {}) {
    let start = 0;
    const total = this.steps.length;
    if (this.inFlight.length === 0) onSlice(0, total);
    while (start < total) {
      throwIfAborted(signal);
      const { end, work } = this.sliceFrom(start);
      const { finished } = await this.submit(start, end);
      const done = end;
      this.inFlight.push({ finished, work, began: performance.now(), report: () => onSlice(done, total) });
      start = end;
      await this.settle(IN_FLIGHT - 1);
    }
    if (wait) await this.settle();
    throwIfAborted(signal);
  }

  /**
   * Wait until no more than so many slices run.
   * @param {number} [most]
   */
  async settle(most = 0) {
    while (this.inFlight.length > most) {
      const { finished, work, began, report } = this.inFlight[0];
      await this.context.guard(finished);
      this.inFlight.shift();
      const now = performance.now();
      this.pacer.note(work, now - Math.max(began, this.lastEnd));
      this.lastEnd = now;
      report();
    }
  }

  /**
   * @param {number} start
   * @param {number} end
   * @returns {Promise<{finished: Promise<undefined>}>} finished: settles when the slice has run
   */
  submit(start, end) {
    const { device } = this.context;
    return this.context.scoped(`plan ${this.plan.component}, dispatches ${start} to ${end - 1}`, () => {
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      encodeSteps(pass, this.steps.slice(start, end));
      pass.end();
      device.queue.submit([encoder.finish()]);
      const finished = device.queue.onSubmittedWorkDone();
      // Whoever waits for it hears of a lost device.
      finished.catch(() => {});
      return { finished };
    });
  }

  /** @param {number} start */
  sliceFrom(start) {
    let end = start;
    let work = 0;
    do {
      work += this.steps[end].work;
      end += 1;
    } while (end < this.steps.length && work + this.steps[end].work <= this.pacer.budget);
    return { end, work };
  }

  destroy() {
    for (const buffer of this.owned.splice(0)) this.context.destroyBuffer(buffer);
    this.ports.clear();
    this.steps = [];
    this.inFlight = [];
  }
}

/**
 * @param {GPUComputePassEncoder} pass
 * @param {Step[]} steps
 */
export function encodeSteps(pass, steps) {
  for (const step of steps) {
    pass.setPipeline(step.pipeline);
    pass.setBindGroup(0, step.bindGroup);
    pass.dispatchWorkgroups(step.groups[0], step.groups[1], step.groups[2]);
  }
}
