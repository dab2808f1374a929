// Seeded contents for buffers that stand in for weights and activations: always the same, as large as wanted.

/**
 * @typedef {"normal" | "half" | "words" | "ternary" | "small" | "ones" | "zeros"} Contents
 *   normal: f32 of deviation 1; half: pairs of f16 of deviation 0.02; words: any bits; ternary: 2-bit codes 0 to 2;
 *   small: u32 below 64; ones, zeros: u32
 */

/** A prime number of words, so that no two rows of a matrix begin alike. */
const TILE_WORDS = 65521;

/** @type {Map<Contents, Uint32Array<ArrayBuffer>>} */
const tiles = new Map();

/** @returns {() => number} the same numbers from 0 to 1 every time */
function numbers() {
  let state = 0x9e3779b9;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** @param {() => number} next */
function normal(next) {
  return Math.sqrt(-2 * Math.log(next() + 1e-12)) * Math.cos(2 * Math.PI * next());
}

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** @param {number} value of a size that f16 holds @returns {number} its bits as f16, cut */
function halfBits(value) {
  float[0] = value;
  const exponent = ((bits[0] >>> 23) & 0xff) - 112;
  return ((bits[0] >>> 16) & 0x8000) | (exponent > 0 ? (exponent << 10) | ((bits[0] >>> 13) & 0x3ff) : 0);
}

/** @param {Contents} contents @returns {(next: () => number) => number} bits of one word */
function wordMaker(contents) {
  if (contents === "normal") {
    return (next) => {
      float[0] = normal(next);
      return bits[0];
    };
  }
  if (contents === "half") return (next) => (halfBits(0.02 * normal(next)) << 16) | halfBits(0.02 * normal(next));
  if (contents === "ternary") {
    return (next) => {
      let word = 0;
      for (let at = 0; at < 32; at += 2) word |= Math.floor(3 * next()) << at;
      return word;
    };
  }
  if (contents === "small") return (next) => Math.floor(64 * next());
  if (contents === "ones") return () => 1;
  return contents === "zeros" ? () => 0 : (next) => Math.floor(2 ** 32 * next());
}

/** @param {Contents} contents */
function tileOf(contents) {
  let tile = tiles.get(contents);
  if (!tile) {
    const [next, make] = [numbers(), wordMaker(contents)];
    tile = Uint32Array.from({ length: TILE_WORDS }, () => make(next));
    tiles.set(contents, tile);
  }
  return tile;
}

/**
 * Fill a part of a buffer.
 * @param {GPUQueue} queue
 * @param {GPUBuffer} buffer
 * @param {number} offset bytes
 * @param {number} bytes a multiple of 4
 * @param {Contents} contents
 */
export function fillRandom(queue, buffer, offset, bytes, contents) {
  const tile = tileOf(contents);
  for (let done = 0; done < bytes; done += tile.byteLength) {
    queue.writeBuffer(buffer, offset + done, tile, 0, Math.min(tile.byteLength, bytes - done) / 4);
  }
}

const SOURCE_TILES = 4;

/** The same contents, copied on the GPU. Whoever makes it destroys it. */
export class Randoms {
  /** @param {import("./device.js").DeviceContext} context */
  constructor(context) {
    this.context = context;
    /** @type {Map<Contents, GPUBuffer>} */
    this.sources = new Map();
  }

  /** @param {Contents} contents */
  source(contents) {
    let source = this.sources.get(contents);
    if (!source) {
      const bytes = 4 * TILE_WORDS * SOURCE_TILES;
      source = this.context.createBuffer("random", bytes, GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST);
      this.sources.set(contents, source);
      fillRandom(this.context.device.queue, source, 0, bytes, contents);
    }
    return source;
  }

  /**
   * @param {GPUCommandEncoder} encoder
   * @param {GPUBuffer} buffer
   * @param {number} bytes from its begin, a multiple of 4
   * @param {Contents} contents
   */
  fill(encoder, buffer, bytes, contents) {
    const source = this.source(contents);
    for (let done = 0; done < bytes; done += source.size) {
      encoder.copyBufferToBuffer(source, 0, buffer, done, Math.min(source.size, bytes - done));
    }
  }

  destroy() {
    for (const source of this.sources.values()) this.context.destroyBuffer(source);
    this.sources.clear();
  }
}

/**
 * What a kernel's operand holds.
 * @param {import("./pipelines.js").KernelBinding} binding
 * @param {Record<string, unknown>} options of the kernel
 * @returns {Contents}
 */
export function contentsOf({ name, access, dtype }, options) {
  // What is added to must be seen to be there.
  if (access !== "read") return options.residual === "accumulate" ? "normal" : "zeros";
  if (dtype === "f32") return "normal";
  if (name === "codes") return options.weights === "ternary" ? "ternary" : "words";
  if (name === "ids") return "small";
  return name === "key_mask" ? "ones" : "half";
}
