// Makes a plan ready to run: symbols become sizes, sizes become buffers, uniforms and bind groups.

import { bandSymbols, unrolled } from "./bands.js";
import { Converted, conversionSizes, convertedBytes, rowsToConvert, scratchOf } from "./conversions.js";
import { BitbrushError } from "./errors.js";
import { Executor } from "./executor.js";
import { evaluate, evaluateCount } from "./expressions.js";
import { PADDING, layoutValues, uniformSlot } from "./layout.js";
import { ALIGNMENT, roundUp } from "./memory.js";
import { UNIT, partsOf } from "./slices.js";
import { estimateWork } from "./work.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./executor.js").Pacer} Pacer
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {import("./plan.js").Dispatch} Dispatch
 * @typedef {import("./pipelines.js").Compiled} Compiled
 * @typedef {import("./pipelines.js").Pipelines} Pipelines
 * @typedef {import("./weights.js").TensorPlace} TensorPlace
 * @typedef {{get: (name: string) => TensorPlace | undefined}} Tensors
 * @typedef {import("./executor.js").Step} Step
 * @typedef {Record<string, number>} Uniforms
 */

const MAX_GROUPS = 65535;

/**
 * Make a plan ready to run at given sizes. On any error nothing stays allocated.
 * @param {DeviceContext} context
 * @param {Plan} plan
 * @param {{symbols: Record<string, number>, tensors: Tensors, pipelines: Pick<Pipelines, "get">, pacer: Pacer}} inputs
 *   symbols: a value for each of plan.symbols; what the device decides (bandSymbols) may be left out
 * @returns {Promise<Executor>}
 */
export async function prepare(context, plan, { symbols, tensors, pipelines, pacer }) {
  const compiled = await context.guard(Promise.all(
    plan.dispatches.map((dispatch) => pipelines.get(dispatch, plan.component))));
  const executor = new Executor(context, plan, pacer);
  try {
    const all = { ...bandSymbols(context.device.limits), ...symbols };
    await context.scoped(`plan ${plan.component}`, () => build(executor, compiled, all, tensors));
  } catch (error) {
    executor.destroy();
    throw error;
  }
  return executor;
}

/**
 * Steps and their buffers. A conversion of an operand is a step of its own, before the first that needs it; a dispatch
 * too long for this adapter becomes several.
 * @param {Executor} executor
 * @param {Compiled[]} compiled one a dispatch
 * @param {Record<string, number>} symbols
 * @param {Tensors} tensors
 */
function build(executor, compiled, symbols, tensors) {
  const { plan, context } = executor;
  const places = placeValues(executor, symbols);
  const slot = uniformSlot(compiled.map(({ entry }) => entry.uniforms.length));
  const steps = unrolled(plan, symbols).map(({ index, dispatch, symbols: here }) => {
    const { entry } = compiled[index];
    const where = `plan ${plan.component}, dispatch ${index} (${dispatch.kernel}, ${dispatch.source ?? "no source"})`;
    const uniforms = uniformsOf(entry, dispatch, here, where);
    const sizes = { ...numericOptions(dispatch), ...dispatch.constants, ...uniforms };
    return { index, dispatch, symbols: here, entry, where, sizes, parts: partsOf(dispatch, sizes, executor.pacer.longest) };
  });
  const { scratch, count } = scratchOf(steps);
  const uniformBytes = new ArrayBuffer(slot * (steps.reduce((sum, { parts }) => sum + parts.length, count)));
  const uniformBuffer = executor.own("uniforms", uniformBytes.byteLength, GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
  const scratchPlaces = placeScratch(executor, scratch);
  const converted = new Converted();
  let slots = 0;
  /** @type {(kernel: Compiled, values: Uniforms, bound: TensorPlace[], where: string) => Step} */
  const step = ({ entry, pipeline, layout }, values, bound, where) => {
    checkAliases(entry, bound, where);
    checkBindingSizes(bound, context.device.limits, where);
    writeUniforms(new DataView(uniformBytes, slots * slot, slot), entry, values);
    const uniforms = { buffer: uniformBuffer, offset: slots * slot, size: roundUp(entry.uniforms.length * 4, PADDING) };
    slots += 1;
    const bindGroup = context.device.createBindGroup({
      layout, entries: [...bound, uniforms].map((resource, binding) => ({ binding, resource })),
    });
    const bytes = bound.reduce((sum, place) => sum + place.size, 0);
    return { pipeline, bindGroup, groups: groupsOf(entry, values, where), work: estimateWork(entry, values, bytes) };
  };
  executor.steps = steps.flatMap(({ index, dispatch, symbols: here, entry, where, sizes, parts }) => {
    const { conversions } = compiled[index];
    const known = { places, tensors, symbols: here };
    /** @type {Map<string, TensorPlace>} by name of what is converted and of its scales */
    const found = new Map();
    const before = Object.entries(entry.converts ?? {}).flatMap(([name, kind]) => {
      const place = findBinding(name, dispatch, known, where);
      const rows = rowsToConvert(name, kind, sizes);
      const { words, scales } = /** @type {{words: TensorPlace, scales: TensorPlace}} */ (scratchPlaces.get(name));
      const bytes = convertedBytes(kind, rows);
      // Parts are rows of x, or queries.
      const unit = convertedBytes(kind, { ...rows, rows: name === "x" || name === "q" ? UNIT : 0 });
      found.set(name, { ...words, size: bytes.words, rowBytes: unit.words / UNIT });
      found.set(`${name}_scales`, { ...scales, size: bytes.scales, rowBytes: unit.scales / UNIT });
      if (!converted.take(name, kind, rows, place)) return [];
      const made = [...found.values()].slice(-2).filter(({ size }) => size > 0);
      return [step(conversions[name], conversionSizes(rows), [place, ...made], `${where}, conversion of ${name}`)];
    });
    const bound = entry.bindings.map(({ name }) => found.get(name) ?? findBinding(name, dispatch, known, where));
    entry.bindings.forEach(({ access }, at) => access === "read_write" && converted.forget(bound[at]));
    /** @type {(place: TensorPlace, at: number, first: number) => TensorPlace} what is converted begins with a part's row */
    const from = (place, at, first) => {
      if (first === 0 || !found.has(entry.bindings[at].name)) return place;
      const skipped = first * (place.rowBytes ?? 0);
      return { ...place, offset: place.offset + skipped, size: place.size - skipped };
    };
    return [...before, ...parts.map(({ first, sizes: own }) =>
      step(compiled[index], own, bound.map((place, at) => from(place, at, first)), where))];
  });
  context.device.queue.writeBuffer(uniformBuffer, 0, uniformBytes);
}

/**
 * @param {import("./pipelines.js").KernelEntry} entry
 * @param {Uniforms} sizes
 * @param {string} where
 */
function groupsOf(entry, sizes, where) {
  const groups = entry.groups.map((expression) => evaluateCount(expression, sizes, `${where}, groups`, 1));
  const most = Math.max(...groups);
  if (most <= MAX_GROUPS) return groups;
  throw new BitbrushError("limit-too-low", `${where}: needs ${most} workgroups in one direction, WebGPU allows ${MAX_GROUPS}`);
}

/**
 * Buffers for converted operands.
 * @param {Executor} executor
 * @param {Map<string, import("./conversions.js").ScratchBytes>} scratch
 * @returns {Map<string, {words: TensorPlace, scales: TensorPlace}>}
 */
function placeScratch(executor, scratch) {
  return new Map([...scratch].map(([binding, { words, scales }]) => {
    const size = roundUp(words, ALIGNMENT);
    const buffer = executor.own("converted", size, GPUBufferUsage.STORAGE);
    const other = scales ? executor.own("converted", scales, GPUBufferUsage.STORAGE) : buffer;
    return [binding, { words: { buffer, offset: 0, size: words }, scales: { buffer: other, offset: 0, size: scales } }];
  }));
}

/**
 * Buffers for inputs, outputs and arenas.
 * @param {Executor} executor
 * @param {Record<string, number>} symbols
 * @returns {TensorPlace[]} one a value
 */
function placeValues(executor, symbols) {
  const { plan } = executor;
  const { bytes, offsets, arenas } = layoutValues(plan, symbols);
  const buffers = arenas.map((size) => (size > 0 ? executor.own("arena", size, GPUBufferUsage.STORAGE) : null));
  return plan.values.map((value, index) => {
    const size = roundUp(bytes[index], PADDING);
    if (value.role === "temporary") {
      const buffer = /** @type {GPUBuffer} */ (buffers[Number(value.arena)]);
      return { buffer, offset: offsets[index], size };
    }
    const transfer = value.role === "input" ? GPUBufferUsage.COPY_DST : GPUBufferUsage.COPY_SRC;
    const buffer = executor.own(value.role, size, GPUBufferUsage.STORAGE | transfer);
    executor.ports.set(value.name, { buffer, bytes: bytes[index], value });
    return { buffer, offset: 0, size };
  });
}

/**
 * @param {import("./pipelines.js").KernelEntry} entry
 * @param {Dispatch} dispatch
 * @param {Record<string, number>} symbols
 * @param {string} where
 * @returns {Uniforms}
 */
function uniformsOf(entry, dispatch, symbols, where) {
  return Object.fromEntries(entry.uniforms.map(({ name, type }) => {
    if (!Object.hasOwn(dispatch.uniforms, name)) {
      throw new BitbrushError("bad-bundle", `${where}: expected a uniform ${name}, found ${Object.keys(dispatch.uniforms)}`);
    }
    const expression = dispatch.uniforms[name];
    return [name, type === "f32" ? evaluate(expression, symbols)
      : evaluateCount(expression, symbols, `${where}, uniform ${name}`)];
  }));
}

/**
 * @param {DataView} view the dispatch's slot
 * @param {import("./pipelines.js").KernelEntry} entry
 * @param {Uniforms} values
 */
function writeUniforms(view, entry, values) {
  entry.uniforms.forEach(({ name, type }, index) => {
    if (type === "f32") view.setFloat32(index * 4, values[name], true);
    else view.setUint32(index * 4, values[name], true);
  });
}

/**
 * @param {string} name of the binding
 * @param {Dispatch} dispatch
 * @param {{places: TensorPlace[], tensors: Tensors, symbols: Record<string, number>}} known
 * @param {string} where
 * @returns {TensorPlace}
 */
function findBinding(name, dispatch, { places, tensors, symbols }, where) {
  const target = dispatch.bindings[name];
  if (typeof target === "object" && "value" in target) {
    return windowOf(places[target.value], target, symbols, `${where}, ${name}`);
  }
  if (typeof target === "number") return places[target];
  const tensor = typeof target === "string" ? target : target?.tensor;
  const place = tensors.get(tensor);
  if (place) return typeof target === "string" ? place : rowsOf(place, target, where);
  const found = target === undefined ? `bindings ${Object.keys(dispatch.bindings)}` : `no tensor ${tensor}`;
  throw new BitbrushError("bad-bundle", `${where}: expected something bound to ${name}, found ${found}`);
}

/**
 * @param {TensorPlace} place of the whole value
 * @param {import("./plan.js").Window} window
 * @param {Record<string, number>} symbols
 * @param {string} where
 * @returns {TensorPlace}
 */
function windowOf(place, window, symbols, where) {
  const start = 4 * evaluateCount(window.first, symbols, `${where}, first`);
  const size = roundUp(4 * evaluateCount(window.elements, symbols, `${where}, elements`, 1), PADDING);
  if (start % ALIGNMENT !== 0 || start + size > place.size) {
    throw new BitbrushError("bad-bundle", `${where}: expected a window from a multiple of ${ALIGNMENT} bytes inside ` +
      `${place.size} bytes, found bytes ${start} to ${start + size}`);
  }
  return { buffer: place.buffer, offset: place.offset + start, size };
}

/**
 * Some rows of a stored tensor.
 * @param {TensorPlace} place of all of it
 * @param {import("./plan.js").Rows} target
 * @param {string} where
 * @returns {TensorPlace}
 */
function rowsOf({ buffer, offset, size, rowBytes = 0 }, { tensor, first, rows }, where) {
  const [begin, bytes] = [first * rowBytes, roundUp(rows * rowBytes, PADDING)];
  if (begin % ALIGNMENT === 0 && begin + bytes <= size) return { buffer, offset: offset + begin, size: bytes };
  throw new BitbrushError("bad-bundle", `${where}: expected rows of ${tensor} that begin at a multiple of ${ALIGNMENT} ` +
    `bytes and end by ${size}, found bytes ${begin} to ${begin + bytes}`);
}

/**
 * WebGPU forbids one buffer both read and written in a dispatch, even in ranges apart, and two writes to one range.
 * @param {import("./pipelines.js").KernelEntry} entry
 * @param {TensorPlace[]} bound
 * @param {string} where
 */
function checkAliases(entry, bound, where) {
  const writes = (/** @type {number} */ index) => entry.bindings[index].access === "read_write";
  bound.forEach((place, index) => {
    const other = writes(index) && bound.some((found, at) => at !== index && found.buffer === place.buffer &&
      (!writes(at) || (found.offset < place.offset + place.size && place.offset < found.offset + found.size)));
    if (other) {
      throw new BitbrushError("bad-bundle", `${where}: expected its output in a buffer of its own, found an operand there`);
    }
  });
}

/**
 * @param {TensorPlace[]} bound
 * @param {GPUSupportedLimits} limits
 * @param {string} where
 */
function checkBindingSizes(bound, limits, where) {
  const largest = Math.max(...bound.map((place) => place.size));
  if (largest <= limits.maxStorageBufferBindingSize) return;
  throw new BitbrushError("limit-too-low",
    `${where}: needs ${largest} bytes in one binding, this device allows ${limits.maxStorageBufferBindingSize}`);
}

/**
 * Options that workgroup counts may use.
 * @param {Dispatch} dispatch
 * @returns {Record<string, number>}
 */
function numericOptions(dispatch) {
  return Object.fromEntries(Object.entries(dispatch.options).flatMap(([name, value]) =>
    (typeof value === "number" ? [[name, value]] : [])));
}
