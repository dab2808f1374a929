// Operands that a kernel's variant wants as f16 or int8: which kernel converts them, into what, and when again.

import { evaluateCount } from "./expressions.js";
import { roundUp } from "./memory.js";

/**
 * @typedef {import("./plan.js").Dispatch} Dispatch
 * @typedef {import("./pipelines.js").KernelEntry} KernelEntry
 * @typedef {import("./weights.js").TensorPlace} TensorPlace
 * @typedef {{rows: number, offset: number, stride: number, heads: number, headStride: number, columns: number}} RowsOf
 *   of a value, columns of each head; offset and strides count elements
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
  int8_tiles: { kernel: "quantize_tiles", options: {} },
  f16_heads: { kernel: "heads_to_f16", options: { order: "tokens" } },
  f16_heads_turned: { kernel: "heads_to_f16", options: { order: "channels" } },
  int8_heads: { kernel: "heads_to_int8", options: { order: "tokens" } },
  int8_heads_turned: { kernel: "heads_to_int8", options: { order: "channels" } },
};

// Columns that share a scale.
const SEGMENT = 128;
// Rows or tokens that stand together in int8_tiles, int8_heads and int8_heads_turned.
const TILE = 64;

/** @param {string} kind */
const hasHeads = (kind) => kind.includes("_heads");
/** The uniform that counts what is converted. @type {(binding: string, kind: string) => string} */
const countOf = (binding, kind) => (!hasHeads(kind) ? "rows" : binding === "q" ? "q_tokens" : "kv_tokens");

/**
 * The dispatch that converts for a dispatch with such constants, but for what it binds.
 * @param {string} binding
 * @param {string} kind
 * @param {Record<string, number>} constants
 * @returns {Dispatch}
 */
export function conversionDispatch(binding, kind, { K, HEADS, KV_HEADS, HEAD_SIZE }) {
  /** @type {Record<string, number>} */
  const sizes = hasHeads(kind) ? { HEADS: binding === "q" ? HEADS : KV_HEADS, HEAD_SIZE } : { COLUMNS: K };
  return { ...CONVERSIONS[kind], constants: sizes, uniforms: {}, bindings: {} };
}

/**
 * The rows that a variant converts: all of a product's, or the queries or keys of an attention.
 * @param {string} binding
 * @param {string} kind
 * @param {Record<string, number>} sizes uniforms and constants of the dispatch
 * @returns {RowsOf}
 */
export function rowsToConvert(binding, kind, sizes) {
  const place = { rows: sizes[countOf(binding, kind)], offset: sizes[`${binding}_offset`], stride: sizes[`${binding}_stride`] };
  if (!hasHeads(kind)) return { ...place, heads: 1, headStride: 0, columns: sizes.K };
  const heads = binding === "q" ? sizes.HEADS : sizes.KV_HEADS;
  return { ...place, heads, headStride: sizes[`${binding}_head_stride`], columns: sizes.HEAD_SIZE };
}

/**
 * Uniforms and constants of the dispatch that converts rows.
 * @param {RowsOf} rows
 */
export function conversionSizes({ rows, offset, stride, heads, headStride, columns }) {
  return {
    COLUMNS: columns, HEADS: heads, HEAD_SIZE: columns, rows, x_offset: offset, x_stride: stride, x_head_stride: headStride,
  };
}

/**
 * Bytes that converted rows take.
 * @param {string} kind
 * @param {Pick<RowsOf, "rows" | "heads" | "columns">} rows
 * @returns {ScratchBytes}
 */
export function convertedBytes(kind, { rows, heads, columns }) {
  const filled = roundUp(rows, { f16_heads_turned: 8, int8_tiles: TILE, int8_heads: TILE, int8_heads_turned: TILE }[kind] ?? 1);
  const words = filled * heads * columns * (kind.startsWith("f16") ? 2 : 1);
  const scales = {
    int8: (rows * columns) / SEGMENT * 8, int8_rows: rows * 8, int8_tiles: filled * 4,
    int8_heads: filled * heads * 4, int8_heads_turned: (filled / TILE) * heads * columns * 8,
  }[kind] ?? 0;
  return { words: roundUp(words, 16), scales: roundUp(scales, 16) };
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
      const counted = countOf(binding, kind);
      const rows = evaluateCount(dispatch.uniforms[counted], symbols, `${dispatch.kernel}, ${counted}`);
      const { words, scales } = convertedBytes(kind, rowsToConvert(binding, kind, { ...dispatch.constants, [counted]: rows }));
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
