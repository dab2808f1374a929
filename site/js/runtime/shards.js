// Shards by index: from the Cache API if they are there, else over the network; their SHA-256 is checked
// either way before anyone sees a byte. A wrong copy in the cache is dropped and fetched again.

import { BitbrushError, asBitbrushError, throwIfAborted } from "./errors.js";

/**
 * @typedef {import("./manifest.js").Shard} Shard
 * @typedef {{get: (index: number, options?: {signal?: AbortSignal, onReceived?: (bytes: number) => void}) =>
 *   Promise<Uint8Array<ArrayBuffer>>, isCached: (index: number) => Promise<boolean>}} ShardSource
 */

const CACHE_NAME = "bitbrush-shards";
const ATTEMPTS = 2;

/** @param {Uint8Array<ArrayBuffer>} bytes */
export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {Shard[]} shards
 * @param {(shard: Shard) => string} urlOf
 * @param {{fetch?: typeof fetch, caches?: CacheStorage}} [environment] for tests
 * @returns {ShardSource}
 */
export function createShardSource(shards, urlOf, environment = {}) {
  const fetcher = environment.fetch ?? globalThis.fetch.bind(globalThis);
  const opened = openCache(environment.caches ?? globalThis.caches);
  // Keyed by content, so that a moved server or a second model with the same shard finds it.
  /** @type {(shard: Shard) => string} */
  const keyOf = (shard) => new URL(`/bitbrush-shard/${shard.sha256}`, globalThis.location.href).href;

  /** @param {Shard} shard */
  async function fromCache(shard) {
    const cache = await opened;
    const response = await cache?.match(keyOf(shard));
    if (!cache || !response) return null;
    const bytes = new Uint8Array(await response.arrayBuffer());
    if (bytes.length === shard.bytes && (await sha256(bytes)) === shard.sha256) return bytes;
    await cache.delete(keyOf(shard));
    return null;
  }

  /**
   * @param {Shard} shard
   * @param {Uint8Array<ArrayBuffer>} bytes
   */
  async function toCache(shard, bytes) {
    const cache = await opened;
    try {
      await cache?.put(keyOf(shard), new Response(bytes));
    } catch {
      // A full disk costs a download next time, never this picture.
    }
  }

  /** @type {ShardSource["get"]} */
  async function get(index, { signal, onReceived = () => {} } = {}) {
    const shard = shards[index];
    throwIfAborted(signal);
    const cached = await fromCache(shard);
    if (cached) {
      onReceived(shard.bytes);
      return cached;
    }
    for (let attempt = 1; ; attempt += 1) {
      try {
        const bytes = await download(fetcher, shard, urlOf(shard), attempt > 1, signal, onReceived);
        await toCache(shard, bytes);
        return bytes;
      } catch (error) {
        const typed = asBitbrushError(error, "network", urlOf(shard));
        if (typed.code === "aborted" || attempt === ATTEMPTS) throw typed;
      }
    }
  }

  return {
    get,
    isCached: async (index) => Boolean(await (await opened)?.match(keyOf(shards[index]))),
  };
}

/**
 * @param {CacheStorage | undefined} caches
 * @returns {Promise<Cache | null>} null where storage is missing or denied
 */
async function openCache(caches) {
  try {
    return (await caches?.open(CACHE_NAME)) ?? null;
  } catch {
    return null;
  }
}

/**
 * @param {typeof fetch} fetcher
 * @param {Shard} shard
 * @param {string} url
 * @param {boolean} again past the HTTP cache, which may hold the wrong bytes
 * @param {AbortSignal | undefined} signal
 * @param {(bytes: number) => void} onReceived bytes of this shard so far
 */
async function download(fetcher, shard, url, again, signal, onReceived) {
  const response = await fetcher(url, { signal, cache: again ? "reload" : "default" });
  if (!response.ok) throw new BitbrushError("network", `${url}: expected a file, the server answered ${response.status}`);
  const bytes = new Uint8Array(shard.bytes);
  let received = 0;
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (received + value.length > shard.bytes) {
      await reader.cancel();
      throw new BitbrushError("hash-mismatch", `${url}: expected ${shard.bytes} bytes, found more`);
    }
    bytes.set(value, received);
    received += value.length;
    onReceived(received);
  }
  if (received < shard.bytes) {
    throw new BitbrushError("hash-mismatch", `${url}: expected ${shard.bytes} bytes, found ${received}`);
  }
  const found = await sha256(bytes);
  if (found !== shard.sha256) {
    throw new BitbrushError("hash-mismatch", `${url}: expected SHA-256 ${shard.sha256}, found ${found}`);
  }
  return bytes;
}
