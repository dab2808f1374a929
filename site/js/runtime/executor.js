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

const SLICE_MS = 80;

/**
 * Finds out how many multiply-adds fit in one short submit on this machine; shared by all executors.
 */
export class Pacer {
  constructor() {
    this.budget = 2e8; // about 0.1 s on the slowest adapter met, a software one
  }

  /**
   * @param {number} work multiply-adds of the slice that just ran
   * @param {number} ms
   */
  note(work, ms) {
    if (ms < SLICE_MS / 2 && work > this.budget / 4) this.budget *= 4;
    if (ms > SLICE_MS * 2) this.budget = Math.max(this.budget / 2, 1e6);
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
    const { buffer, bytes } = this.port(name, "output");
    const { device } = this.context;
    const staging = await this.context.scoped(`reading ${name}`, () => {
      const made = this.own("readback", bytes, GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(buffer, 0, made, 0, bytes);
      device.queue.submit([encoder.finish()]);
      return made;
    });
    await this.context.guard(staging.mapAsync(GPUMapMode.READ));
    const copy = staging.getMappedRange().slice(0);
    this.owned.splice(this.owned.indexOf(staging), 1);
    this.context.destroyBuffer(staging);
    return copy;
  }

  /**
   * Run all dispatches.
   * @param {{signal?: AbortSignal, onSlice?: (done: number, total: number) => void}} [options]
   */
  async run({ signal, onSlice = () => {} } = {}) {
    const { device } = this.context;
    let start = 0;
    onSlice(0, this.steps.length);
    while (start < this.steps.length) {
      throwIfAborted(signal);
      const { end, work } = this.sliceFrom(start);
      const began = performance.now();
      const { finished } = await this.context.scoped(`plan ${this.plan.component}, dispatches ${start} to ${end - 1}`, () => {
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        for (const step of this.steps.slice(start, end)) {
          pass.setPipeline(step.pipeline);
          pass.setBindGroup(0, step.bindGroup);
          pass.dispatchWorkgroups(step.groups[0], step.groups[1], step.groups[2]);
        }
        pass.end();
        device.queue.submit([encoder.finish()]);
        return { finished: device.queue.onSubmittedWorkDone() };
      });
      await this.context.guard(finished);
      this.pacer.note(work, performance.now() - began);
      start = end;
      onSlice(start, this.steps.length);
    }
    throwIfAborted(signal);
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
  }
}
