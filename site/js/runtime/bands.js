// Row bands of pictures that no binding holds (exporter/lower/bands.py): how large they are on this device,
// and which dispatches a plan's loops come to.

import { evaluate, evaluateCount } from "./expressions.js";

/**
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {import("./plan.js").Dispatch} Dispatch
 * @typedef {Record<string, number>} Symbols
 */

const BAND_BYTES = 64 * 2 ** 20;
const HELD_BYTES = 512 * 2 ** 20;

/**
 * Values of the free symbols that the device decides.
 * @param {{maxStorageBufferBindingSize: number, maxBufferSize: number}} limits
 * @returns {Symbols} band_elements: the most f32 elements of a picture that a band may have; held_elements: the most
 *   that a picture may have to be kept whole where it could also be computed twice
 */
export function bandSymbols({ maxStorageBufferBindingSize, maxBufferSize }) {
  return {
    band_elements: Math.floor(Math.min(maxStorageBufferBindingSize, BAND_BYTES) / 4),
    held_elements: Math.floor(Math.min(maxBufferSize / 2, HELD_BYTES) / 4),
  };
}

/**
 * Values of all free symbols at a picture's size.
 * @param {Parameters<typeof bandSymbols>[0]} limits
 * @param {{downscale: number, text_tokens: number}} model pixels a latent, tokens of a prompt
 * @param {number[]} size width and height in pixels
 * @returns {Symbols}
 */
export function symbolsAt(limits, { downscale, text_tokens }, size) {
  const [columns, rows] = size.map((pixels) => Math.ceil(pixels / downscale));
  return { ...bandSymbols(limits), rows, columns, image_tokens: rows * columns, text_tokens };
}

/**
 * The dispatches of a plan in the order in which they run.
 * @param {Plan} plan
 * @param {Symbols} symbols
 * @returns {{index: number, dispatch: Dispatch, symbols: Symbols}[]} index: in plan.dispatches; symbols: with the
 *   band's own
 */
export function unrolled(plan, symbols) {
  const steps = [];
  let next = 0;
  for (const loop of [...plan.loops, null]) {
    const end = loop ? loop.first : plan.dispatches.length;
    for (; next < end; next += 1) steps.push({ index: next, dispatch: plan.dispatches[next], symbols });
    if (!loop) break;
    for (const band of bandsOf(loop, symbols, `plan ${plan.component}, loop from dispatch ${loop.first}`)) {
      for (let index = loop.first; index <= loop.last; index += 1) {
        steps.push({ index, dispatch: plan.dispatches[index], symbols: { ...symbols, ...band } });
      }
    }
    next = loop.last + 1;
  }
  return steps.filter((step) => evaluate(step.dispatch.when ?? 1, step.symbols) !== 0);
}

/**
 * @param {import("./plan.js").Loop} loop
 * @param {Symbols} symbols
 * @param {string} where
 * @returns {Symbols[]} one a band
 */
function bandsOf(loop, symbols, where) {
  const rows = evaluateCount(loop.rows, symbols, `${where}, rows`, 1);
  const bandRows = evaluateCount(loop.band_rows, symbols, `${where}, band_rows`, 1);
  const bands = Math.ceil(rows / bandRows);
  return Array.from({ length: bands }, (_, band) => ({
    band, bands, band_first: band * bandRows, band_end: Math.min((band + 1) * bandRows, rows),
  }));
}
