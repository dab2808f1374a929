// Long dispatches in parts, so that one alone does not hold the screen: rows of a matrix product, and queries of an
// attention, are computed apart from each other.

import { estimateWork } from "./work.js";

/**
 * @typedef {Record<string, number>} Sizes uniforms and constants of one dispatch, by name
 * @typedef {{first: number, sizes: Sizes}} Part rows from `first` on: the sizes that compute them alone
 */

/** Rows of a part are a multiple of this: whole tiles of every variant, and places of 256 bytes of what is converted. */
export const UNIT = 128;

/** What counts the rows of a kernel, and by which stride each offset moves with them.
 * @type {Record<string, {count: string, offsets: Record<string, string>}>} */
const DIVISIBLE = {
  linear: { count: "rows", offsets: { x_offset: "x_stride", residual_offset: "residual_stride", y_offset: "y_stride" } },
  attention: { count: "q_tokens", offsets: { q_offset: "q_stride", y_offset: "y_stride" } },
};

/**
 * The parts of a dispatch that together compute what it does.
 * @param {Pick<import("./plan.js").Dispatch, "kernel" | "options">} dispatch
 * @param {Sizes} sizes
 * @param {number} longest work of a part, about; Infinity leaves the dispatch whole
 * @returns {Part[]}
 */
export function partsOf(dispatch, sizes, longest) {
  const found = DIVISIBLE[dispatch.kernel];
  const work = estimateWork(dispatch, sizes, 0);
  if (!found || dispatch.options.mask === "causal" || work <= longest) return [{ first: 0, sizes }];
  const count = sizes[found.count];
  const rows = UNIT * Math.max(1, Math.floor((count * longest) / work / UNIT));
  const parts = [];
  for (let first = 0; first < count; first += rows) {
    const moved = Object.entries(found.offsets).map(([offset, stride]) => [offset, sizes[offset] + first * sizes[stride]]);
    parts.push({ first, sizes: { ...sizes, ...Object.fromEntries(moved), [found.count]: Math.min(rows, count - first) } });
  }
  return parts;
}
