// Tensors larger than one binding may be: placed in pieces of whole rows, and computed with piece by piece.

import { BitbrushError } from "./errors.js";
import { residentTensors } from "./manifest.js";

/**
 * @typedef {import("./manifest.js").Component} Component
 * @typedef {import("./plan.js").Dispatch} Dispatch
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {import("./plan.js").Binding} Binding
 * @typedef {{name: string, first: number, rows: number, bytes: number}} Piece rows `first` .. `first + rows`
 * @typedef {import("./plan.js").Rows} Rows of one piece
 */

/** So many rows of any stored matrix, scale or bias are a multiple of 256 bytes, where bindings may start. */
export const ROW_STEP = 128;

/** So many rows of codes are whole units of trits, too. */
const TRIT_ROW_STEP = 5 * ROW_STEP;

/** Kernels that can be given some rows of their weights at a time, unless they take two for a column (swiglu). */
const SPLIT_KERNELS = ["linear", "embedding"];

/**
 * The most bytes of a tensor that one binding can have.
 * @param {GPUSupportedLimits} limits
 * @param {number} [forced] a lower bound of a test's choice
 */
export function bindingLimit(limits, forced = Infinity) {
  return Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize, forced);
}

/**
 * A tensor as it is placed: whole under its own name, or in pieces of as many rows as a binding holds.
 * @param {string} name
 * @param {number} rows
 * @param {number} bytes on the GPU
 * @param {number} limit bytes
 * @param {number} [step] pieces end at multiples of so many rows
 * @returns {Piece[]}
 */
export function tensorPieces(name, rows, bytes, limit, step = ROW_STEP) {
  if (bytes <= limit) return [{ name, first: 0, rows, bytes }];
  const rowBytes = bytes / rows;
  const most = Math.floor(limit / rowBytes / step) * step;
  if (most === 0) throw tooLarge(name, bytes, limit);
  /** @type {Piece[]} */
  const pieces = [];
  for (let first = 0; first < rows; first += most) {
    const count = Math.min(most, rows - first);
    pieces.push({ name: first ? `${name}@${first}` : name, first, rows: count, bytes: count * rowBytes });
  }
  return pieces;
}

/**
 * @param {string} name
 * @param {number} bytes
 * @param {number} limit
 */
function tooLarge(name, bytes, limit) {
  return new BitbrushError("limit-too-low", `${name} has ${bytes} bytes, this device binds at most ${limit}`);
}

/**
 * @param {Component} component
 * @param {number} limit bytes
 * @returns {{name: string, stored: import("./manifest.js").Tensor, list: Piece[]}[]} each tensor's pieces
 */
export function componentPieces(component, limit) {
  return residentTensors(component).map(({ name, bytes, stored }) => {
    const [rows = 1] = stored.expands_to?.shape ?? stored.shape;
    const most = stored.copied ? Infinity : limit;
    return { name, stored, list: tensorPieces(name, rows, bytes, most, stored.expands_to ? TRIT_ROW_STEP : ROW_STEP) };
  });
}

/**
 * The plan for a device that binds at most `limit` bytes: a dispatch with a larger tensor becomes one for each
 * piece. Refuses, before anything is downloaded, a component that cannot be split so.
 * @param {Plan} plan
 * @param {Component} component
 * @param {number} limit
 * @returns {Plan}
 */
export function splitPlan(plan, component, limit) {
  const pieces = new Map(componentPieces(component, limit).map(({ name, list }) => [name, list]));
  if ([...pieces.values()].every((list) => list.length === 1)) return plan;
  /** @type {number[]} */
  const starts = [];
  /** @type {Dispatch[]} */
  const dispatches = [];
  for (const dispatch of plan.dispatches) {
    starts.push(dispatches.length);
    dispatches.push(...splitDispatch(dispatch, pieces, limit));
  }
  starts.push(dispatches.length);
  /** @type {<T>(record: T) => T} */
  const moved = (record) => {
    const { first, last } = /** @type {{first?: number, last?: number}} */ (record);
    return first === undefined || last === undefined ? record : { ...record, first: starts[first], last: starts[last + 1] - 1 };
  };
  return { ...plan, values: plan.values.map(moved), loops: plan.loops.map(moved), dispatches };
}

/**
 * @param {Dispatch} dispatch
 * @param {Map<string, Piece[]>} pieces of all tensors
 * @param {number} limit
 * @returns {Dispatch[]}
 */
function splitDispatch(dispatch, pieces, limit) {
  const windows = Object.entries(dispatch.bindings).flatMap(([binding, target]) => {
    const window = tensorWindow(target, pieces);
    return window ? [{ binding, ...window }] : [];
  });
  const inner = windows.flatMap(({ name, first, rows }) => listOf(pieces, name)
    .map((piece) => piece.first - first)
    .filter((cut) => cut > 0 && cut < rows));
  const cutUp = windows.find(({ name }) => listOf(pieces, name).length > 1);
  if (!cutUp) return [dispatch];
  if (!SPLIT_KERNELS.includes(dispatch.kernel) || (inner.length > 0 && dispatch.options.epilogue === "swiglu")) {
    throw tooLarge(cutUp.name, listOf(pieces, cutUp.name).reduce((sum, piece) => sum + piece.bytes, 0), limit);
  }
  const edges = [...new Set([0, ...inner, cutUp.rows])].sort((a, b) => a - b);
  return edges.slice(0, -1).map((start, index) => {
    const rows = edges[index + 1] - start;
    const bindings = windows.map(({ binding, name, first }) => [binding, rowsOf(listOf(pieces, name), first + start, rows)]);
    const sizes = edges.length > 2 ? partSizes(dispatch, start, rows) : {};
    return { ...dispatch, ...sizes, bindings: { ...dispatch.bindings, ...Object.fromEntries(bindings) } };
  });
}

/**
 * @param {Map<string, Piece[]>} pieces
 * @param {string} name
 */
function listOf(pieces, name) {
  return pieces.get(name) ?? [];
}

/**
 * Which rows of which tensor a binding names; null for anything else.
 * @param {Binding} target
 * @param {Map<string, Piece[]>} pieces
 */
function tensorWindow(target, pieces) {
  if (typeof target === "number" || (typeof target === "object" && "value" in target)) return null;
  if (typeof target !== "string") return { name: target.tensor, first: target.first, rows: target.rows };
  const last = listOf(pieces, target).at(-1);
  return last ? { name: target, first: 0, rows: last.first + last.rows } : null;
}

/**
 * @param {Piece[]} list
 * @param {number} first
 * @param {number} rows inside one piece
 * @returns {Rows}
 */
function rowsOf(list, first, rows) {
  const piece = /** @type {Piece} */ (list.findLast((candidate) => candidate.first <= first));
  return { tensor: piece.name, first: first - piece.first, rows };
}

/**
 * Constants and uniforms of a dispatch that computes with `rows` rows of its weights from `start`.
 * @param {Dispatch} dispatch
 * @param {number} start
 * @param {number} rows
 */
function partSizes({ kernel, constants, uniforms }, start, rows) {
  if (kernel === "embedding") return { uniforms: { ...uniforms, first_row: start, table_rows: rows } };
  const moved = ["residual_offset", "gate_offset", "y_offset"].map((name) => [name, ["add", uniforms[name], start]]);
  return { constants: { ...constants, N: rows }, uniforms: { ...uniforms, ...Object.fromEntries(moved) } };
}
