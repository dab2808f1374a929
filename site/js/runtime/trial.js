// One dispatch of a plan alone, on random operands in buffers that all variants of its kernel share: to check them
// against each other and to time them on the shapes that the plan has.

import { unrolled } from "./bands.js";
import { Pacer } from "./executor.js";
import { evaluate, evaluateCount } from "./expressions.js";
import { PADDING } from "./layout.js";
import { roundUp } from "./memory.js";
import { PLAN_FORMAT } from "./plan.js";
import { prepare } from "./prepare.js";
import { contentsOf } from "./random.js";
import { componentPieces } from "./rows.js";
import { multiplyAdds } from "./work.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./pipelines.js").Pipelines} Pipelines
 * @typedef {import("./plan.js").Dispatch} Dispatch
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {import("./weights.js").TensorPlace} TensorPlace
 * @typedef {Map<string, {rows: number, bytes: number}>} TensorSizes by the names that plans bind
 * @typedef {{component: string, index: number, dispatch: Dispatch, symbols: Record<string, number>,
 *   sizes: Record<string, number>, macs: number}} Shape one dispatch at fixed sizes; sizes: uniforms and constants
 * @typedef {{plan: Plan, tensors: TensorSizes}} Source of shapes
 * @typedef {{bytes: number, contents: import("./random.js").Contents, written: boolean, stored: boolean}} Operand
 *   stored: a tensor, whose size is always the same
 */

/**
 * Sizes of a component's tensors as they are placed on this device.
 * @param {import("./manifest.js").Component} component
 * @param {number} limit most bytes of one binding
 * @returns {TensorSizes}
 */
export function tensorSizes(component, limit) {
  return new Map(componentPieces(component, limit).flatMap(({ list }) =>
    list.map(({ name, rows, bytes }) => [name, { rows, bytes }])));
}

/**
 * The dispatches of a plan in the order in which they run.
 * @param {Plan} plan
 * @param {Record<string, number>} symbols with those of the device
 * @returns {Shape[]}
 */
export function shapesOf(plan, symbols) {
  return unrolled(plan, symbols).map(({ index, dispatch, symbols: here }) => {
    const uniforms = Object.entries(dispatch.uniforms).map(([name, expression]) => [name, evaluate(expression, here)]);
    const sizes = { ...Object.fromEntries(uniforms), ...dispatch.constants };
    return { component: plan.component, index, dispatch, symbols: here, sizes, macs: multiplyAdds(dispatch, sizes) };
  });
}

/**
 * The operands of a dispatch by the names of their bindings. Of bindings that have one value, the first one's stands for all.
 * @param {Source} source
 * @param {Shape} shape
 * @param {import("./pipelines.js").KernelEntry} baseline of the kernel
 */
function operandsOf({ plan, tensors }, { dispatch, symbols }, baseline) {
  /** @type {Map<string, Operand>} */
  const operands = new Map();
  for (const binding of baseline.bindings) {
    const { name, access } = binding;
    const target = dispatch.bindings[name];
    if (typeof target === "number" && operands.has(firstOf(dispatch, target))) continue;
    const stored = typeof target === "string" || (typeof target === "object" && "tensor" in target);
    let bytes = PADDING;
    if (stored) {
      const size = tensors.get(typeof target === "string" ? target : target.tensor) ?? { rows: 1, bytes };
      bytes = size.bytes * (typeof target === "string" ? 1 : target.rows / size.rows);
    } else if (target !== undefined) {
      const expression = typeof target === "number" ? plan.values[target].elements : target.elements;
      bytes = 4 * evaluateCount(expression, symbols, `plan ${plan.component}, ${dispatch.kernel} alone, ${name}`, 1);
    }
    const contents = contentsOf(binding, dispatch.options);
    operands.set(name, { bytes: roundUp(Math.max(bytes, PADDING), PADDING), contents, written: access !== "read", stored });
  }
  return operands;
}

/**
 * The first binding that has a value.
 * @param {Dispatch} dispatch
 * @param {number} value
 */
function firstOf({ bindings }, value) {
  return /** @type {string} */ (Object.keys(bindings).find((name) => bindings[name] === value));
}

/** Buffers for the operands of a dispatch, and what runs on them. Whoever makes it destroys it. */
export class Scratch {
  /**
   * @param {DeviceContext} context
   * @param {Pipelines} pipelines
   * @param {Source} source
   */
  constructor(context, pipelines, source) {
    this.context = context;
    this.pipelines = pipelines;
    this.source = source;
    /** @type {Map<string, GPUBuffer>} */
    this.buffers = new Map();
    /** @type {import("./executor.js").Executor[]} */
    this.executors = [];
  }

  /** @param {Shape} shape */
  operands(shape) {
    return operandsOf(this.source, shape, this.pipelines.variantsOf(shape.dispatch)[0]);
  }

  /**
   * @param {string} name
   * @param {number} size bytes
   * @param {GPUBufferUsageFlags} [usage]
   */
  add(name, size, usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC) {
    const buffer = this.context.createBuffer("trial", size, usage);
    this.buffers.set(name, buffer);
    return buffer;
  }

  /**
   * Make the operands, as large as the largest of some shapes needs them.
   * @param {Shape[]} shapes of one dispatch
   * @param {import("./random.js").Randoms} randoms what they are filled with
   */
  async open(shapes, randoms) {
    /** @type {Map<string, Operand>} */
    const largest = new Map();
    for (const [name, operand] of shapes.flatMap((shape) => [...this.operands(shape)])) {
      if (operand.bytes > (largest.get(name)?.bytes ?? 0)) largest.set(name, operand);
    }
    await this.context.scoped("a trial's operands", () => {
      const encoder = this.context.device.createCommandEncoder();
      for (const [name, { bytes, contents }] of largest) randoms.fill(encoder, this.add(name, bytes), bytes, contents);
      this.context.device.queue.submit([encoder.finish()]);
    });
  }

  /**
   * @param {string} name
   * @param {number} size bytes
   * @param {number} [offset]
   * @returns {TensorPlace}
   */
  place(name, size, offset = 0) {
    return { buffer: /** @type {GPUBuffer} */ (this.buffers.get(name)), offset, size };
  }

  /**
   * The dispatch at a shape.
   * @param {Shape} shape
   * @param {string} [variant] in place of the chosen one
   */
  steps(shape, variant) {
    const { dispatch, symbols } = shape;
    const operands = this.operands(shape);
    const uniforms = Object.fromEntries(
      Object.entries(dispatch.uniforms).map(([name, expression]) => [name, evaluate(expression, symbols)]));
    const bindings = Object.fromEntries(Object.entries(dispatch.bindings).map(([name, target]) =>
      [name, typeof target === "number" ? firstOf(dispatch, target) : name]));
    const places = new Map([...operands].map(([name, { bytes }]) => [name, this.place(name, bytes)]));
    return this.prepare(shape.component, [{ ...dispatch, uniforms, bindings, when: undefined }], places, variant);
  }

  /**
   * Dispatches that bind nothing but names of places.
   * @param {string} component
   * @param {Dispatch[]} dispatches
   * @param {Map<string, TensorPlace>} places
   * @param {string} [variant]
   */
  async prepare(component, dispatches, places, variant) {
    /** @type {Plan} */
    const plan = { format: PLAN_FORMAT, component, symbols: [], arenas: 0, values: [], loops: [], dispatches };
    const pipelines = { get: (/** @type {Dispatch} */ dispatch) => this.pipelines.get(dispatch, component, variant) };
    const executor = await prepare(this.context, plan, { symbols: {}, tensors: places, pipelines, pacer: new Pacer() });
    this.executors.push(executor);
    return executor.steps;
  }

  destroy() {
    for (const executor of this.executors.splice(0)) executor.destroy();
    for (const buffer of this.buffers.values()) this.context.destroyBuffer(buffer);
    this.buffers.clear();
  }
}
