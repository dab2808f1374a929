// One component's tensors in GPU buffers. Tensors share few large buffers; shards arrive one by one, are
// written in small pieces, and are let go at once, so neither the page nor the driver holds them twice.

import { BitbrushError, throwIfAborted } from "./errors.js";
import { shardsOf, tensorBytes } from "./manifest.js";
import { ALIGNMENT, roundUp } from "./memory.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./manifest.js").Component} Component
 * @typedef {import("./shards.js").ShardSource} ShardSource
 * @typedef {{buffer: GPUBuffer, offset: number, size: number}} TensorPlace
 * @typedef {{tensors: Map<string, TensorPlace>, bytes: number, destroy: () => void}} Weights
 * @typedef {{name: string, buffer: number, offset: number, bytes: number, size: number}} Placement
 *   bytes: what the file holds; size: padded to 16
 */

const BUFFER_BYTES = 256 * 2 ** 20; // some drivers refuse single allocations from 512 MiB
const PIECE_BYTES = 4 * 2 ** 20;
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
  const places = Object.entries(component.tensors).map(([name, tensor]) => {
    const bytes = tensorBytes(tensor);
    const size = roundUp(Math.max(bytes, 16), 16);
    const last = sizes.length - 1;
    const offset = last < 0 ? 0 : roundUp(sizes[last], ALIGNMENT);
    if (last >= 0 && offset + size <= bufferBytes) {
      sizes[last] = offset + size;
      return { name, buffer: last, offset, bytes, size };
    }
    sizes.push(size);
    return { name, buffer: sizes.length - 1, offset: 0, bytes, size };
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
  for (const [name, tensor] of Object.entries(component.tensors)) {
    const bytes = tensorBytes(tensor);
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
 * @param {{label: string, signal?: AbortSignal, onShard?: (index: number, received: number) => void,
 *   bufferBytes?: number}} options onShard: bytes of a shard that have arrived
 * @returns {Promise<Weights>}
 */
export async function loadWeights(context, component, source, options) {
  const { label, signal, onShard = () => {}, bufferBytes = BUFFER_BYTES } = options;
  checkTensorLimits(component, context.device.limits);
  const { places, sizes } = placeTensors(component, Math.min(bufferBytes, context.device.limits.maxBufferSize));
  /** @type {GPUBuffer[]} */
  const buffers = [];
  const destroy = () => buffers.splice(0).forEach((buffer) => context.destroyBuffer(buffer));
  try {
    await context.scoped(label, () => {
      for (const size of sizes) {
        buffers.push(context.createBuffer(label, size, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC |
          GPUBufferUsage.COPY_DST));
      }
    });
    await fillBuffers(context, component, source, places, buffers, { signal, onShard });
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
 * @param {{signal?: AbortSignal, onShard: (index: number, received: number) => void}} options
 */
async function fillBuffers(context, component, source, places, buffers, { signal, onShard }) {
  const queue = context.device.queue;
  const writer = new WordWriter(queue);
  const targets = partsByShard(component, places);
  let pieces = 0;
  for await (const [index, bytes] of prefetch(source, shardsOf(component), signal, onShard)) {
    for (const { buffer, offset, from, length } of targets.get(index) ?? []) {
      for (let done = 0; done < length; done += PIECE_BYTES) {
        throwIfAborted(signal);
        const end = Math.min(done + PIECE_BYTES, length);
        writer.write(buffers[buffer], offset + done, bytes.subarray(from + done, from + end));
        pieces += 1;
        if (pieces % PIECES_IN_FLIGHT === 0) await context.guard(queue.onSubmittedWorkDone());
      }
    }
  }
  throwIfAborted(signal);
  await context.guard(queue.onSubmittedWorkDone());
}

/**
 * @param {Component} component
 * @param {Placement[]} places
 * @returns {Map<number, {buffer: number, offset: number, from: number, length: number}[]>} by shard
 */
function partsByShard(component, places) {
  /** @type {ReturnType<typeof partsByShard>} */
  const byShard = new Map();
  for (const place of places) {
    let offset = place.offset;
    for (const part of component.tensors[place.name].parts) {
      const list = byShard.get(part.shard) ?? [];
      list.push({ buffer: place.buffer, offset, from: part.offset, length: part.bytes });
      byShard.set(part.shard, list);
      offset += part.bytes;
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
