// One dispatch of a plan alone, on random operands in buffers of its own: to check a kernel's variants against each
// other and to time them on the shapes that the plan has.

import { unrolled } from "./bands.js";
import { Pacer } from "./executor.js";
import { evaluate, evaluateCount } from "./expressions.js";
import { PADDING } from "./layout.js";
import { roundUp } from "./memory.js";
import { prepare } from "./prepare.js";
import { contentsOf, fillRandom } from "./random.js";
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
 * A plan of one dispatch whose operands are all inputs and outputs, each as large as what is bound.
 * @param {Plan} plan
 * @param {Shape} shape
 * @param {import("./pipelines.js").KernelEntry} baseline of the kernel
 * @param {TensorSizes} tensors
 */
function soloPlan(plan, { component, dispatch, symbols }, baseline, tensors) {
  /** @type {import("./plan.js").PlanValue[]} */
  const values = [];
  /** @type {Map<string, number>} bytes by name */
  const stored = new Map();
  /** @type {Record<string, import("./plan.js").Binding>} */
  const bindings = {};
  /** @type {Map<number, number>} */
  const whole = new Map();
  const where = `plan ${plan.component}, ${dispatch.kernel} alone`;
  for (const { name, access } of baseline.bindings) {
    const target = dispatch.bindings[name];
    const isValue = typeof target === "number" || (typeof target === "object" && "value" in target);
    if (!isValue) {
      const wanted = typeof target === "string" ? target : target?.tensor;
      const { rows, bytes } = tensors.get(wanted) ?? { rows: 1, bytes: PADDING };
      const part = typeof target === "object" ? target.rows / rows : 1;
      stored.set(name, roundUp(Math.max(bytes * part, PADDING), PADDING));
      bindings[name] = name;
      continue;
    }
    const source = plan.values[typeof target === "number" ? target : target.value];
    const known = typeof target === "number" ? whole.get(target) : undefined;
    const expression = typeof target === "number" ? source.elements : target.elements;
    bindings[name] = known ?? values.length;
    if (known !== undefined) continue;
    if (typeof target === "number") whole.set(target, values.length);
    const elements = evaluateCount(expression, symbols, `${where}, ${name}`, 1);
    values.push({ name, role: access === "read" ? "input" : "output", dtype: source.dtype, elements });
  }
  const uniforms = Object.fromEntries(
    Object.entries(dispatch.uniforms).map(([name, expression]) => [name, evaluate(expression, symbols)]));
  const alone = { ...dispatch, uniforms, bindings, when: undefined };
  /** @type {Plan} */
  const solo = { format: plan.format, component, symbols: [], arenas: 0, values, loops: [], dispatches: [alone] };
  return { solo, stored };
}

/**
 * Prepare one dispatch alone. Whoever opens it destroys it; on any error nothing stays allocated.
 * @param {DeviceContext} context
 * @param {Pipelines} pipelines
 * @param {{plan: Plan, shape: Shape, tensors: TensorSizes, variant?: string, fill?: boolean}} trial variant: in place
 *   of the chosen one; fill: with random numbers, else all operands are 0
 */
export async function openTrial(context, pipelines, { plan, shape, tensors, variant, fill = true }) {
  const [baseline] = pipelines.variantsOf(shape.dispatch);
  const { solo, stored } = soloPlan(plan, shape, baseline, tensors);
  const { queue } = context.device;
  const { options } = shape.dispatch;
  /** @type {Map<string, TensorPlace>} */
  const places = new Map();
  const destroyTensors = () => {
    for (const { buffer } of places.values()) context.destroyBuffer(buffer);
    places.clear();
  };
  try {
    await context.scoped("a trial's operands", () => {
      for (const [name, size] of stored) {
        const buffer = context.createBuffer("trial", size, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST);
        places.set(name, { buffer, offset: 0, size });
      }
    });
    const only = /** @type {Pipelines} */ ({
      get: (/** @type {Dispatch} */ dispatch, /** @type {string} */ component) => pipelines.get(dispatch, component, variant),
    });
    const executor = await prepare(context, solo, { symbols: {}, tensors: places, pipelines: only, pacer: new Pacer() });
    for (const binding of fill ? baseline.bindings : []) {
      const contents = contentsOf(binding, options);
      const place = places.get(binding.name);
      const port = executor.ports.get(binding.name);
      if (place) fillRandom(queue, place.buffer, 0, place.size, contents);
      else if (port?.value.role === "input") fillRandom(queue, port.buffer, 0, port.bytes, contents);
    }
    const destroy = () => {
      executor.destroy();
      destroyTensors();
    };
    const outputs = solo.values.filter((value) => value.role === "output").map((value) => value.name);
    return { executor, outputs, destroy };
  } catch (error) {
    destroyTensors();
    throw error;
  }
}
