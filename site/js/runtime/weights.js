// One component's tensors in GPU buffers. Tensors share few large buffers; shards arrive one by one, are
// written in small pieces, and are let go at once, so neither the page nor the driver holds them twice.

import { BitbrushError, throwIfAborted } from "./errors.js";
import { residentTensors, shardsOf, TRIT_UNIT } from "./manifest.js";
import { ALIGNMENT, roundUp } from "./memory.js";
import { openExpander } from "./trits.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./manifest.js").Component} Component
 * @typedef {import("./pipelines.js").Pipelines} Pipelines
 * @typedef {import("./shards.js").ShardSource} ShardSource
 * @typedef {{buffer: GPUBuffer, offset: number, size: number}} TensorPlace
 * @typedef {{tensors: Map<string, TensorPlace>, bytes: number, destroy: () => void}} Weights
 * @typedef {{name: string, buffer: number, offset: number, bytes: number, size: number,
 *   stored: import("./manifest.js").Tensor}} Placement bytes: on the GPU; size: these padded to 16
 * @typedef {{buffer: number, offset: number, from: number, length: number, trits: boolean, end: number}} Target
 *   bytes `from` .. `from + length` of a shard and where they go; end: of their tensor in the buffer
 */

const BUFFER_BYTES = 256 * 2 ** 20; // some drivers refuse single allocations from 512 MiB
const PIECE_BYTES = 4 * 2 ** 20; // whole units of trits
const PIECES_IN_FLIGHT = 4;
const SHARDS_AHEAD = 2;

/**
 * Where tensors go: in order, a new buffer when one is full; a larger tensor has its own.
 * @param {Component} component
 * @param {number} bufferBytes
 * @returns {{places: Placement[], sizes: number[]}} sizes of the buffers in bytes
 */
export function placeTensors(component, bufferBytes) {
  /** @type {number[]} */
  const sizes = [];
  const places = residentTensors(component).map(({ name, bytes, stored }) => {
    const size = roundUp(Math.max(bytes, 16), 16);
    const last = sizes.length - 1;
    const offset = last < 0 ? 0 : roundUp(sizes[last], ALIGNMENT);
    if (last >= 0 && offset + size <= bufferBytes) {
      sizes[last] = offset + size;
      return { name, buffer: last, offset, bytes, size, stored };
    }
    sizes.push(size);
    return { name, buffer: sizes.length - 1, offset: 0, bytes, size, stored };
  });
  return { places, sizes };
}

/**
 * Refuse, before anything is downloaded, a component that this device cannot bind.
 * @param {Component} component
 * @param {GPUSupportedLimits} limits
 */
export function checkTensorLimits(component, limits) {
  const allowed = Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize);
  for (const { name, bytes } of residentTensors(component)) {
    if (bytes > allowed) {
      throw new BitbrushError("limit-too-low", `${name} has ${bytes} bytes, this device binds at most ${allowed}`);
    }
  }
}

/**
 * Writes bytes at any offset into buffers that only take whole words: words on an edge are kept and
 * written again when their other half comes.
 */
class WordWriter {
  /** @param {GPUQueue} queue */
  constructor(queue) {
    this.queue = queue;
    /** @type {Map<GPUBuffer, Map<number, Uint8Array<ArrayBuffer>>>} */
    this.edges = new Map();
  }

  /**
   * @param {GPUBuffer} buffer
   * @param {number} offset bytes
   * @param {Uint8Array<ArrayBuffer>} bytes
   */
  write(buffer, offset, bytes) {
    const head = Math.min(bytes.length, (4 - (offset % 4)) % 4);
    const tail = (bytes.length - head) % 4;
    const middle = bytes.length - head - tail;
    if (head) this.writeEdge(buffer, offset, bytes.subarray(0, head));
    if (middle) this.queue.writeBuffer(buffer, offset + head, bytes, head, middle);
    if (tail) this.writeEdge(buffer, offset + head + middle, bytes.subarray(head + middle));
  }

  /**
   * @param {GPUBuffer} buffer
   * @param {number} offset
   * @param {Uint8Array<ArrayBuffer>} bytes within one word
   */
  writeEdge(buffer, offset, bytes) {
    const start = offset - (offset % 4);
    const words = this.edges.get(buffer) ?? new Map();
    const word = words.get(start) ?? new Uint8Array(4);
    word.set(bytes, offset - start);
    this.edges.set(buffer, words.set(start, word));
    this.queue.writeBuffer(buffer, start, word);
  }
}

/**
 * Load a component's tensors to the GPU. On any error or cancel nothing stays allocated.
 * @param {DeviceContext} context
 * @param {Component} component
 * @param {ShardSource} source
 * @param {{label: string, pipelines: Pipelines, signal?: AbortSignal,
 *   onShard?: (index: number, received: number) => void, bufferBytes?: number}} options
 *   onShard: bytes of a shard that have arrived
 * @returns {Promise<Weights>}
 */
export async function loadWeights(context, component, source, options) {
  const { label, pipelines, signal, onShard = () => {}, bufferBytes = BUFFER_BYTES } = options;
  checkTensorLimits(component, context.device.limits);
  const { places, sizes } = placeTensors(component, Math.min(bufferBytes, context.device.limits.maxBufferSize));
  /** @type {GPUBuffer[]} */
  const buffers = [];
  const destroy = () => buffers.splice(0).forEach((buffer) => context.destroyBuffer(buffer));
  try {
    await context.scoped(label, () => {
      for (const size of sizes) {
        buffers.push(context.createBuffer(label, size, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST));
      }
    });
    await fillBuffers(context, component, source, places, buffers, { pipelines, signal, onShard });
  } catch (error) {
    destroy();
    throw error;
  }
  const tensors = new Map(places.map((place) =>
    [place.name, { buffer: buffers[place.buffer], offset: place.offset, size: place.size }]));
  return { tensors, bytes: sizes.reduce((a, b) => a + b, 0), destroy };
}

/**
 * @param {DeviceContext} context
 * @param {Component} component
 * @param {ShardSource} source
 * @param {Placement[]} places
 * @param {GPUBuffer[]} buffers
 * @param {{pipelines: Pipelines, signal?: AbortSignal, onShard: (index: number, received: number) => void}} options
 */
async function fillBuffers(context, component, source, places, buffers, { pipelines, signal, onShard }) {
  const queue = context.device.queue;
  const writer = new WordWriter(queue);
  const expander = await openExpander(context, component, pipelines, PIECE_BYTES);
  const targets = partsByShard(places);
  let pieces = 0;
  try {
    for await (const [index, bytes] of prefetch(source, shardsOf(component), signal, onShard)) {
      for (const { buffer, offset, from, length, trits, end } of targets.get(index) ?? []) {
        for (let done = 0; done < length; done += PIECE_BYTES) {
          throwIfAborted(signal);
          const piece = bytes.subarray(from + done, from + Math.min(done + PIECE_BYTES, length));
          if (trits) expander?.write(buffers[buffer], offset + expandedBytes(done), end, piece);
          else writer.write(buffers[buffer], offset + done, piece);
          pieces += 1;
          if (pieces % PIECES_IN_FLIGHT === 0) await context.guard(queue.onSubmittedWorkDone());
        }
      }
    }
    throwIfAborted(signal);
    await context.guard(queue.onSubmittedWorkDone());
  } finally {
    expander?.destroy();
  }
}

/** @param {number} bytes of whole units of trits */
function expandedBytes(bytes) {
  return (bytes / TRIT_UNIT.bytes) * TRIT_UNIT.words * 4;
}

/**
 * @param {Placement[]} places
 * @returns {Map<number, Target[]>} by shard
 */
function partsByShard(places) {
  /** @type {ReturnType<typeof partsByShard>} */
  const byShard = new Map();
  for (const { buffer, offset: first, bytes, stored } of places) {
    const trits = Boolean(stored.expands_to);
    let offset = first;
    for (const part of stored.parts) {
      const list = byShard.get(part.shard) ?? [];
      list.push({ buffer, offset, from: part.offset, length: part.bytes, trits, end: first + bytes });
      byShard.set(part.shard, list);
      offset += trits ? expandedBytes(part.bytes) : part.bytes;
    }
  }
  return byShard;
}

/**
 * Shards in order, the next ones already on their way.
 * @param {ShardSource} source
 * @param {number[]} indices
 * @param {AbortSignal | undefined} signal
 * @param {(index: number, received: number) => void} onShard
 * @returns {AsyncGenerator<[number, Uint8Array<ArrayBuffer>]>}
 */
export async function* prefetch(source, indices, signal, onShard) {
  const stop = new AbortController();
  const either = signal ? AbortSignal.any([signal, stop.signal]) : stop.signal;
  /** @type {Promise<Uint8Array<ArrayBuffer>>[]} */
  const pending = [];
  let started = 0;
  try {
    for (const index of indices) {
      while (started < indices.length && pending.length < SHARDS_AHEAD) {
        const next = indices[started];
        const promise = source.get(next, { signal: either, onReceived: (received) => onShard(next, received) });
        promise.catch(() => {}); // thrown below, when its turn comes
        pending.push(promise);
        started += 1;
      }
      yield [index, await /** @type {Promise<Uint8Array<ArrayBuffer>>} */ (pending.shift())];
    }
  } finally {
    stop.abort(); // a consumer that stops early leaves no download running
  }
}
