// Small files over the network, with typed errors.

import { BitbrushError, asBitbrushError } from "./errors.js";

/**
 * @param {string} url
 * @param {AbortSignal} [signal]
 * @param {RequestCache} [cache]
 * @returns {Promise<string>}
 */
export async function fetchText(url, signal, cache = "default") {
  try {
    const response = await fetch(url, { signal, cache });
    if (!response.ok) throw new BitbrushError("network", `${url}: expected a file, the server answered ${response.status}`);
    return await response.text();
  } catch (error) {
    throw asBitbrushError(error, "network", url);
  }
}

/**
 * JSON files are not named by their content: the browser asks whether its copy still stands, so that a
 * manifest of today never meets a plan of yesterday.
 * @param {string} url
 * @param {AbortSignal} [signal]
 * @returns {Promise<unknown>}
 */
export async function fetchJson(url, signal) {
  const text = await fetchText(url, signal, "no-cache");
  try {
    return JSON.parse(text);
  } catch (error) {
    const start = text.trimStart().slice(0, 20);
    throw new BitbrushError("bad-bundle", `${url}: expected JSON, found text that starts with ${JSON.stringify(start)}`,
      { cause: error });
  }
}
