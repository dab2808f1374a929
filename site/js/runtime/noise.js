// The noise of torch's CPU generator: torch.randn(..., generator=torch.Generator("cpu").manual_seed(seed)).
// Same numbers in the same order, so that a seed draws the same picture here and in Python. Bit for bit what
// torch draws on x86 with AVX2; on other processors torch itself differs from that in the last places.

import { log32, sincos32 } from "./float32.js";

const STATE = 624;
const MIDDLE = 397;

/** Mersenne Twister MT19937, seeded as torch seeds it: by the low 32 bits of the seed. */
export class Mt19937 {
  /** @param {number | bigint} seed a whole number from 0, up to 2^53 - 1 as a number, to 2^64 - 1 as a bigint */
  constructor(seed) {
    this.state = new Uint32Array(STATE);
    this.state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < STATE; i += 1) {
      const previous = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, previous ^ (previous >>> 30)) + i;
    }
    this.next = STATE;
  }

  twist() {
    const { state } = this;
    for (let i = 0; i < STATE; i += 1) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % STATE] & 0x7fffffff);
      state[i] = state[(i + MIDDLE) % STATE] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  /** @returns {number} 32 random bits */
  random() {
    if (this.next === STATE) this.twist();
    let y = this.state[this.next];
    this.next += 1;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** @returns {number} f32 in [0, 1) of 24 bits */
  uniformFloat() {
    return (this.random() & 0xffffff) / 2 ** 24;
  }

  /** @returns {number} f64 in [0, 1) of 53 bits */
  uniformDouble() {
    // The low 53 bits of two draws, the first one on top.
    const high = this.random() & 0x1fffff;
    return (high * 2 ** 32 + this.random()) / 2 ** 53;
  }
}

const { fround } = Math;
const TWO_PI = fround(2 * Math.PI);

/**
 * Turns 16 uniform numbers into 16 normal ones: 8 radii with 8 angles, in float32.
 * @param {Float32Array} values
 * @param {number} start
 */
function boxMuller16(values, start) {
  for (let j = start; j < start + 8; j += 1) {
    const radius = fround(Math.sqrt(-2 * log32(fround(1 - values[j]))));
    const [sine, cosine] = sincos32(fround(TWO_PI * values[j + 8]));
    values[j] = radius * cosine;
    values[j + 8] = radius * sine;
  }
}

/**
 * torch draws 16 and more in blocks; a last block that is not full is drawn anew over the last 16 values.
 * @param {number} count
 * @param {Mt19937} generator
 */
function blocks(count, generator) {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 1) values[i] = generator.uniformFloat();
  for (let i = 0; i + 16 <= count; i += 16) boxMuller16(values, i);
  if (count % 16 !== 0) {
    for (let i = count - 16; i < count; i += 1) values[i] = generator.uniformFloat();
    boxMuller16(values, count - 16);
  }
  return values;
}

/**
 * torch draws fewer than 16 one by one in float64; each pair of uniform numbers gives two.
 * @param {number} count
 * @param {Mt19937} generator
 */
function singles(count, generator) {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const angle = 2 * Math.PI * generator.uniformDouble();
    const radius = Math.sqrt(-2 * Math.log1p(-generator.uniformDouble()));
    values[i] = radius * Math.cos(angle);
    if (i + 1 < count) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}

/**
 * Normal numbers as torch.randn(count) gives them.
 * @param {number | bigint} seed
 * @param {number} count
 * @returns {Float32Array<ArrayBuffer>}
 */
export function randn(seed, count) {
  const generator = new Mt19937(seed);
  return count < 16 ? singles(count, generator) : blocks(count, generator);
}

/**
 * The first latents: torch.randn(1, channels, height, width), packed as diffusers packs them.
 * @param {number | bigint} seed
 * @param {number} channels
 * @param {number} tokens height * width
 * @returns {Float32Array<ArrayBuffer>} f32[tokens, channels]
 */
export function initialLatents(seed, channels, tokens) {
  const drawn = randn(seed, channels * tokens);
  const packed = new Float32Array(drawn.length);
  for (let token = 0; token < tokens; token += 1) {
    for (let channel = 0; channel < channels; channel += 1) {
      packed[token * channels + channel] = drawn[channel * tokens + token];
    }
  }
  return packed;
}
