// What a visitor may ask for. Each refusal names the field and the nearest value that works.

import { BitbrushError, show } from "./errors.js";

/**
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {{prompt: string, width: number, height: number, steps: number, seed: number}} Request
 */

export const MAX_SEED = Number.MAX_SAFE_INTEGER; // 2^53 - 1
export const MAX_STEPS = 1000;

/**
 * @param {string} field
 * @param {string} expected
 * @param {unknown} found
 * @param {number} nearest
 */
function refuse(field, expected, found, nearest) {
  return new BitbrushError("bad-request", `${field}: expected ${expected}, found ${show(found)}; the nearest is ${nearest}`);
}

/**
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/**
 * @param {string} field
 * @param {unknown} value
 * @param {import("./manifest.js").Sizes} sizes
 */
function checkSize(field, value, { multiple, minimum, maximum }) {
  const low = Math.ceil(minimum / multiple) * multiple;
  const high = Math.floor(maximum / multiple) * multiple;
  const number = typeof value === "number" && Number.isFinite(value) ? value : low;
  const nearest = clamp(Math.round(number / multiple) * multiple, low, high);
  if (value !== nearest) throw refuse(field, `a multiple of ${multiple} from ${low} to ${high}`, value, nearest);
  return nearest;
}

/**
 * @param {string} field
 * @param {unknown} value
 * @param {number} low
 * @param {number} high
 */
function checkWhole(field, value, low, high) {
  const number = typeof value === "number" && !Number.isNaN(value) ? value : low;
  const nearest = clamp(Math.round(number), low, high);
  if (value !== nearest) throw refuse(field, `a whole number from ${low} to ${high}`, value, nearest);
  return nearest;
}

/**
 * A request that can be drawn with this model.
 * @param {Partial<Record<keyof Request, unknown>>} request
 * @param {Manifest} manifest
 * @returns {Request}
 */
export function checkRequest(request, manifest) {
  if (typeof request.prompt !== "string") {
    throw new BitbrushError("bad-request", `prompt: expected text, found ${show(request.prompt)}`);
  }
  return {
    prompt: request.prompt,
    width: checkSize("width", request.width, manifest.sizes),
    height: checkSize("height", request.height, manifest.sizes),
    steps: checkWhole("steps", request.steps, 1, MAX_STEPS),
    seed: checkWhole("seed", request.seed, 0, MAX_SEED),
  };
}
