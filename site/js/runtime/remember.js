// Small facts about this device that outlive a visit, in the Cache API beside the shards: a worker has no localStorage.

const CACHE_NAME = "bitbrush-facts";

/** @param {string} key */
async function addressOf(key) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(key)));
  const name = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return new URL(`/bitbrush-fact/${name}`, globalThis.location.href).href;
}

/**
 * What was remembered under a key.
 * @param {string} key of any length
 * @returns {Promise<unknown>} null where there is nothing, or storage is missing or denied
 */
export async function recall(key) {
  try {
    const response = await (await caches.open(CACHE_NAME)).match(await addressOf(key));
    return response ? await response.json() : null;
  } catch {
    return null;
  }
}

/**
 * Remember a value that JSON can hold; where storage is denied it is forgotten.
 * @param {string} key
 * @param {unknown} value
 */
export async function remember(key, value) {
  try {
    await (await caches.open(CACHE_NAME)).put(await addressOf(key), new Response(JSON.stringify(value)));
  } catch {
    // Choosing again costs a moment at the next visit.
  }
}
