// How many bytes a plan's values take at given sizes, and where in the arenas temporaries lie. The exporter
// counts alike (exporter/lower/plan_bytes.py).

import { unrolled } from "./bands.js";
import { scratchOf } from "./conversions.js";
import { evaluateCount } from "./expressions.js";
import { ALIGNMENT, planArenas, roundUp } from "./memory.js";

/**
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {{bytes: number[], offsets: number[], arenas: number[]}} Layout bytes of each value; offset of each
 *   temporary in its arena, 0 for others; bytes of each arena
 */

/** Buffers and bindings are padded to a multiple of this. */
export const PADDING = 16;

/**
 * @param {Plan} plan
 * @param {Record<string, number>} symbols a value for each of the plan's
 * @returns {Layout}
 */
export function layoutValues(plan, symbols) {
  const bytes = plan.values.map((value) =>
    4 * evaluateCount(value.elements, symbols, `plan ${plan.component}, value ${value.name}`, 1));
  const temporaries = plan.values.flatMap((value, index) => (value.role === "temporary" ? [index] : []));
  const lifetimes = temporaries.map((index) => {
    const { arena, first, last } = plan.values[index];
    return { arena: Number(arena), first: Number(first), last: Number(last), bytes: bytes[index] };
  });
  const placed = planArenas(lifetimes, plan.arenas);
  const offsets = new Array(bytes.length).fill(0);
  temporaries.forEach((index, order) => { offsets[index] = placed.offsets[order]; });
  return { bytes, offsets, arenas: placed.sizes };
}

/**
 * Bytes of the part of a uniform buffer that one dispatch has.
 * @param {number[]} counts uniforms of each dispatch
 */
export function uniformSlot(counts) {
  return roundUp(4 * Math.max(...counts), ALIGNMENT);
}

/**
 * The most bytes that running a plan takes at once, weights apart: arenas, inputs, outputs, converted operands,
 * uniforms, and the largest output once more while it is read back.
 * @param {Plan} plan
 * @param {Record<string, number>} symbols
 * @param {(dispatch: import("./plan.js").Dispatch) => import("./pipelines.js").KernelEntry} entryOf the variant that a
 *   dispatch runs: some convert operands, which takes scratch buffers
 */
export function planBytes(plan, symbols, entryOf) {
  const { bytes, arenas } = layoutValues(plan, symbols);
  const ports = bytes.filter((_, index) => plan.values[index].role !== "temporary").map((size) => roundUp(size, PADDING));
  const slot = uniformSlot(plan.dispatches.map((dispatch) => Object.keys(dispatch.uniforms).length));
  const steps = unrolled(plan, symbols);
  const { scratch, count } = scratchOf(steps.map((step) => ({ ...step, entry: entryOf(step.dispatch) })));
  const converted = [...scratch.values()].map(({ words, scales }) => roundUp(words, ALIGNMENT) + scales);
  const uniforms = slot * (steps.length + count);
  const readback = Math.max(0, ...bytes.filter((_, index) => plan.values[index].role === "output"));
  return [...arenas, ...ports, ...converted, uniforms, readback].reduce((a, b) => a + b, 0);
}
