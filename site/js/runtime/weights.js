// One component's tensors in GPU buffers. Tensors share few large buffers; shards arrive one by one, are
// written in small pieces, and are let go at once, so neither the page nor the driver holds them twice.

import { throwIfAborted } from "./errors.js";
import { PADDING } from "./layout.js";
import { shardsOf, TRIT_UNIT } from "./manifest.js";
import { ALIGNMENT, roundUp } from "./memory.js";
import { bindingLimit, componentPieces } from "./rows.js";
import { expanderBytes, openExpander } from "./trits.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./manifest.js").Component} Component
 * @typedef {import("./pipelines.js").Pipelines} Pipelines
 * @typedef {import("./shards.js").ShardSource} ShardSource
 * @typedef {{buffer: GPUBuffer, offset: number, size: number, rowBytes?: number}} TensorPlace
 *   rowBytes: of a stored tensor
 * @typedef {{tensors: Map<string, TensorPlace>, bytes: number, destroy: () => void}} Weights
 * @typedef {import("./rows.js").Piece & {stored: import("./manifest.js").Tensor, buffer: number, offset: number,
 *   size: number}} Placement of a tensor or a piece of one; bytes: on the GPU; size: padded to 16
 * @typedef {{buffer: number, offset: number, from: number, length: number, trits: boolean, end: number}} Target
 *   bytes `from` .. `from + length` of a shard and where they go; end: of their piece in the buffer
 */

// Some drivers refuse single allocations from 512 MiB.
const BUFFER_BYTES = 256 * 2 ** 20;
const PIECE_BYTES = 4 * 2 ** 20; // whole units of trits
const PIECES_IN_FLIGHT = 4;
const SHARDS_AHEAD = 2;

/**
 * Where tensors go: in order, a new buffer when one is full; a larger tensor has its own, one that cannot be
 * bound whole (rows.js) has several.
 * @param {Component} component
 * @param {number} bufferBytes
 * @param {number} limit most bytes of one binding
 * @returns {{places: Placement[], sizes: number[]}} sizes of the buffers in bytes
 */
export function placeTensors(component, bufferBytes, limit) {
  /** @type {number[]} */
  const sizes = [];
  const pieces = componentPieces(component, limit).flatMap(({ stored, list }) =>
    list.map((piece) => ({ stored, ...piece })));
  const places = pieces.map((piece) => {
    const size = roundUp(Math.max(piece.bytes, PADDING), PADDING);
    const last = sizes.length - 1;
    const offset = last < 0 ? 0 : roundUp(sizes[last], ALIGNMENT);
    if (last >= 0 && offset + size <= bufferBytes) {
      sizes[last] = offset + size;
      return { ...piece, buffer: last, offset, size };
    }
    sizes.push(size);
    return { ...piece, buffer: sizes.length - 1, offset: 0, size };
  });
  return { places, sizes };
}

/**
 * Bytes that `loadWeights` will take of the GPU.
 * @param {Component} component
 * @param {GPUSupportedLimits} limits
 * @param {number} [bindingBytes] a lower limit than the device's, for tests
 */
export function weightBytes(component, limits, bindingBytes) {
  const { sizes } = placeTensors(component, Math.min(BUFFER_BYTES, limits.maxBufferSize), bindingLimit(limits, bindingBytes));
  return sizes.reduce((a, b) => a + b, 0);
}

/**
 * Bytes that loading takes of the GPU meanwhile, beside the weights themselves.
 * @param {Component} component
 */
export function stagingBytes(component) {
  return expanderBytes(component, PIECE_BYTES);
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
 *   onShard?: (index: number, received: number) => void, bufferBytes?: number, bindingBytes?: number}} options
 *   onShard: bytes of a shard that have arrived; bindingBytes: a lower limit than the device's, for tests
 * @returns {Promise<Weights>}
 */
export async function loadWeights(context, component, source, options) {
  const { label, pipelines, signal, onShard = () => {}, bufferBytes = BUFFER_BYTES } = options;
  const { limits } = context.device;
  const { places, sizes } = placeTensors(component, Math.min(bufferBytes, limits.maxBufferSize),
    bindingLimit(limits, options.bindingBytes));
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
    await fillBuffers(context, component, source, places, buffers, { pipelines, signal, onShard });
  } catch (error) {
    destroy();
    throw error;
  }
  const tensors = new Map(places.map((place) =>
    [place.name, { buffer: buffers[place.buffer], offset: place.offset, size: place.size, rowBytes: place.bytes / place.rows }]));
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
  for (const { buffer, offset, first, rows, bytes, stored } of places) {
    const trits = Boolean(stored.expands_to);
    const [unit, expanded] = trits ? [TRIT_UNIT.bytes, TRIT_UNIT.words * 4] : [1, 1];
    // Of the piece in its tensor, as all below in bytes on the GPU.
    const begin = first * (bytes / rows);
    let at = 0; // of the part in the tensor
    for (const part of stored.parts) {
      const partEnd = at + (part.bytes / unit) * expanded;
      const from = Math.max(begin, at);
      const units = Math.ceil((Math.min(begin + bytes, partEnd) - from) / expanded);
      if (units > 0) {
        const list = byShard.get(part.shard) ?? [];
        const source = { from: part.offset + ((from - at) / expanded) * unit, length: units * unit };
        list.push({ buffer, offset: offset + from - begin, ...source, trits, end: offset + bytes });
        byShard.set(part.shard, list);
      }
      at = partEnd;
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
    // A consumer that stops early leaves no download running.
    stop.abort();
  }
}
