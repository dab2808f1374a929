// Tables that the plans take as inputs. Angles are rounded where the reference rounds them: the denoiser's
// in float64, Qwen3's and the timestep's in float32.

const { fround } = Math;

/** @typedef {{cos: Float32Array<ArrayBuffer>, sin: Float32Array<ArrayBuffer>}} RotaryTable f32[tokens, head_size / 2] */

/**
 * @param {number} tokens
 * @param {number} pairs
 * @param {(token: number, pair: number) => number} angleOf
 * @returns {RotaryTable}
 */
function fillTable(tokens, pairs, angleOf) {
  const cos = new Float32Array(tokens * pairs);
  const sin = new Float32Array(tokens * pairs);
  for (let token = 0; token < tokens; token += 1) {
    for (let pair = 0; pair < pairs; pair += 1) {
      const angle = angleOf(token, pair);
      cos[token * pairs + pair] = Math.cos(angle);
      sin[token * pairs + pair] = Math.sin(angle);
    }
  }
  return { cos, sin };
}

/**
 * The denoiser's table: text rows first, row l at (0, 0, 0, l); then image rows, row-major at (0, y, x, 0).
 * @param {{axes: number[], theta: number}} rotary channels of each of the four axes
 * @param {number} textTokens
 * @param {number} rows
 * @param {number} columns
 * @returns {RotaryTable}
 */
export function denoiserRotary({ axes, theta }, textTokens, rows, columns) {
  const frequencies = axes.flatMap((channels, axis) =>
    Array.from({ length: channels / 2 }, (_, pair) => ({ axis, frequency: 1 / theta ** ((2 * pair) / channels) })));
  /** @type {(token: number) => number[]} */
  const position = (token) => {
    if (token < textTokens) return [0, 0, 0, token];
    const place = token - textTokens;
    return [0, Math.floor(place / columns), place % columns, 0];
  };
  return fillTable(textTokens + rows * columns, frequencies.length, (token, pair) => {
    const { axis, frequency } = frequencies[pair];
    return position(token)[axis] * frequency;
  });
}

/**
 * The encoder's table: positions 0, 1, 2, ...
 * @param {{head_size: number, theta: number}} rotary
 * @param {number} tokens
 * @returns {RotaryTable}
 */
export function encoderRotary({ head_size: headSize, theta }, tokens) {
  const frequencies = Array.from({ length: headSize / 2 }, (_, pair) =>
    fround(1 / fround(theta ** fround((2 * pair) / headSize))));
  return fillTable(tokens, headSize / 2, (token, pair) => fround(token * frequencies[pair]));
}

/**
 * The sinusoid of a timestep: cosines, then sines.
 * @param {number} timestep f32, 1000 at pure noise
 * @param {number} count of features, even
 * @returns {Float32Array<ArrayBuffer>} f32[count]
 */
export function timestepFeatures(timestep, count) {
  const half = count / 2;
  // The pipeline divides, the transformer multiplies.
  const time = fround(fround(timestep / 1000) * 1000);
  const decay = fround(-Math.log(10000));
  const features = new Float32Array(count);
  for (let k = 0; k < half; k += 1) {
    const frequency = fround(Math.exp(fround(fround(decay * k) / half)));
    const angle = fround(time * frequency);
    features[k] = Math.cos(angle);
    features[half + k] = Math.sin(angle);
  }
  return features;
}
