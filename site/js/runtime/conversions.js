// Operands that a kernel's variant wants as f16 or int8: which kernel converts them, into what, and when again.

import { evaluateCount } from "./expressions.js";
import { roundUp } from "./memory.js";

/**
 * @typedef {import("./plan.js").Dispatch} Dispatch
 * @typedef {import("./pipelines.js").KernelEntry} KernelEntry
 * @typedef {import("./weights.js").TensorPlace} TensorPlace
 * @typedef {{rows: number, offset: number, stride: number, columns: number}} RowsOf of a value: elements
 * @typedef {{words: number, scales: number}} ScratchBytes
 */

/**
 * Kernel and options for each operand type of `Variant.converts` (webgpu_kernels/operands.py).
 * @type {Record<string, {kernel: string, options: Record<string, unknown>}>}
 */
const CONVERSIONS = {
  f16: { kernel: "to_f16", options: {} },
  int8: { kernel: "quantize", options: { share: "segment" } },
  int8_rows: { kernel: "quantize", options: { share: "row" } },
};

const SEGMENT = 128; // columns that share a scale

/**
 * The dispatch that converts rows of so many columns, but for what it binds.
 * @param {string} kind
 * @param {number} columns
 * @returns {Dispatch}
 */
export function conversionDispatch(kind, columns) {
  return { ...CONVERSIONS[kind], constants: { COLUMNS: columns }, uniforms: {}, bindings: {} };
}

/**
 * The rows that a variant converts.
 * @param {string} binding
 * @param {Record<string, number>} sizes uniforms and constants of the dispatch
 * @returns {RowsOf}
 */
export function rowsToConvert(binding, sizes) {
  return { rows: sizes.rows, offset: sizes[`${binding}_offset`], stride: sizes[`${binding}_stride`], columns: sizes.K };
}

/**
 * Bytes that converted rows take.
 * @param {string} kind
 * @param {Pick<RowsOf, "rows" | "columns">} rows
 * @returns {ScratchBytes}
 */
export function convertedBytes(kind, { rows, columns }) {
  const words = rows * columns * (kind === "f16" ? 2 : 1);
  const scales = { f16: 0, int8: columns / SEGMENT, int8_rows: 1 }[kind] ?? 0;
  return { words: roundUp(words, 16), scales: roundUp(rows * scales * 8, 16) };
}

/**
 * Scratch that steps need, by binding: enough for the largest.
 * @param {{dispatch: Dispatch, entry: KernelEntry, symbols: Record<string, number>}[]} steps
 * @returns {{scratch: Map<string, ScratchBytes>, count: number}} count: of conversions, at most
 */
export function scratchOf(steps) {
  /** @type {Map<string, ScratchBytes>} */
  const scratch = new Map();
  let count = 0;
  for (const { dispatch, entry, symbols } of steps) {
    for (const [binding, kind] of Object.entries(entry.converts ?? {})) {
      const rows = evaluateCount(dispatch.uniforms.rows, symbols, `${dispatch.kernel}, rows`);
      const { words, scales } = convertedBytes(kind, { rows, columns: dispatch.constants.K });
      const known = scratch.get(binding) ?? { words: 0, scales: 0 };
      scratch.set(binding, { words: Math.max(words, known.words), scales: Math.max(scales, known.scales) });
      count += 1;
    }
  }
  return { scratch, count };
}

/** What the scratch buffers of an executor hold: nothing is converted twice while it is there and unchanged. */
export class Converted {
  constructor() {
    /** By binding. @type {Map<string, {key: string, place: TensorPlace}>} */
    this.held = new Map();
  }

  /**
   * Whether rows must be converted now; from then on they are held.
   * @param {string} binding
   * @param {string} kind
   * @param {RowsOf} rows
   * @param {TensorPlace} place of the value
   */
  take(binding, kind, rows, place) {
    const key = JSON.stringify([kind, rows, place.offset, place.size]);
    const held = this.held.get(binding);
    if (held?.key === key && held.place.buffer === place.buffer) return false;
    this.held.set(binding, { key, place });
    return true;
  }

  /**
   * Forget what was converted from a place that a dispatch writes.
   * @param {TensorPlace} written
   */
  forget(written) {
    for (const [binding, { place }] of this.held) {
      const apart = place.buffer !== written.buffer || written.offset + written.size <= place.offset ||
        place.offset + place.size <= written.offset;
      if (!apart) this.held.delete(binding);
    }
  }
}
