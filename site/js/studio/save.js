// The picture as a file: PNG bytes, the settings text that other programs read, and the download.

import { encodePng } from "../runtime/png.js";

/**
 * @typedef {{prompt: string, seed: number, width: number, height: number, steps: number, model: string,
 *            variant: string, adapter: string, seconds: number, timings: Record<string, number>,
 *            pixels: Uint8ClampedArray, latents?: Float32Array}} Picture
 */

/** @param {string} value @returns {string} quoted if commas, colons, quotes or line ends would split it */
const quote = (value) => (/[,:"\n]/.test(value) ? JSON.stringify(value) : value);

/** @param {Picture} picture @returns {string} prompt and settings in the line form of AUTOMATIC1111 */
export function parametersText(picture) {
  const settings = {
    "Steps": picture.steps,
    "Sampler": "Euler",
    "CFG scale": 1,
    "Seed": picture.seed,
    "Size": `${picture.width}x${picture.height}`,
    "Model": quote(`${picture.model}-${picture.variant}`),
    "Version": "Bitbrush",
  };
  const line = Object.entries(settings).map(([name, value]) => `${name}: ${value}`).join(", ");
  return `${picture.prompt}\n${line}`;
}

/**
 * @param {Picture} picture
 * @param {boolean} withSettings whether the file carries prompt and settings
 * @returns {Promise<Blob>} the PNG file
 */
export async function pngFile({ pixels, width, height, ...facts }, withSettings) {
  const text = withSettings ? { parameters: parametersText({ pixels, width, height, ...facts }) } : {};
  return new Blob([await encodePng({ pixels, width, height, text })], { type: "image/png" });
}

/** @param {Picture} picture @returns {string} a file name from the prompt and the seed */
export function fileName({ prompt, seed }) {
  const words = prompt.normalize("NFC").toLowerCase().replace(/[^\p{Letter}\p{Number}]+/gu, "-").replace(/^-|-$/g, "");
  return `${[...words].slice(0, 48).join("") || "bitbrush"}-${seed}.png`;
}

/** @param {string} url blob address @param {string} name file name */
export function download(url, name) {
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
}
