// How much GPU memory a picture takes, from what the site says for the sizes that it offers.

/**
 * @typedef {Record<string, Record<string, number>>} Memory "512x512" -> phase -> GPU bytes, as in models/index.json
 * @typedef {{needs: string[], bytes: Record<string, number>}[]} Converted scratch of denoising by size, where the
 *   device has all the features that it needs
 */

/**
 * Memory with the scratch for operands that this device may convert.
 *
 * @param {Memory} memory
 * @param {Converted} converted
 * @param {string[]} offers features, see `probe` of client.js
 * @returns {Memory}
 */
export function withConverted(memory, converted, offers) {
  const used = converted.filter(({ needs }) => needs.every((feature) => offers.includes(feature)));
  return Object.fromEntries(Object.entries(memory).map(([size, phases]) =>
    [size, { ...phases, denoise: phases.denoise + Math.max(0, ...used.map(({ bytes }) => bytes[size])) }]));
}

/**
 * The most bytes at once, of all phases. Other sizes than the listed ones are estimated: bytes grow with the
 * number of pixels as a straight line does.
 *
 * @param {Memory} memory
 * @param {number} width pixels
 * @param {number} height pixels
 * @returns {number} NaN where nothing is known
 */
export function gpuBytes(memory, width, height) {
  const listed = memory[`${width}x${height}`];
  if (listed) return Math.max(...Object.values(listed));
  const points = Object.entries(memory).map(([size, phases]) => {
    const [columns, rows] = size.split("x").map(Number);
    return { pixels: columns * rows, phases };
  }).sort((a, b) => a.pixels - b.pixels);
  if (points.length === 0) return NaN;
  const [least, most] = [points[0], points[points.length - 1]];
  const share = most.pixels > least.pixels ? (width * height - least.pixels) / (most.pixels - least.pixels) : 0;
  return Math.max(...Object.entries(least.phases).map(([phase, bytes]) => bytes + share * (most.phases[phase] - bytes)));
}

/**
 * The query `?budget=GB`: GPU memory that the runtime should stay within.
 *
 * @param {string} search of the page's address
 * @returns {number | undefined} bytes; undefined without one
 */
export function budgetBytes(search) {
  const gigabytes = Number(new URLSearchParams(search).get("budget"));
  return gigabytes > 0 ? gigabytes * 1e9 : undefined;
}
