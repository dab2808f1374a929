// A prompt becomes a picture: text -> features; noise -> latents, step by step; latents -> pixels.

import { BitbrushError, throwIfAborted } from "./errors.js";
import { reporter } from "./model.js";
import { findModulations, writeModulation } from "./modulation.js";
import { initialLatents } from "./noise.js";
import { denoiserRotary, encoderRotary } from "./rotary.js";
import { checkRequest } from "./request.js";
import { makeSchedule } from "./schedule.js";

/**
 * @typedef {import("./model.js").Model} Model
 * @typedef {import("./request.js").Request} Request
 * @typedef {import("./model.js").RunOptions} Options
 * @typedef {{pixels: Uint8ClampedArray<ArrayBuffer>, width: number, height: number, seed: number,
 *   timings_ms: Record<string, number>, peak_bytes: Record<string, number>, latents?: Float32Array<ArrayBuffer>,
 *   features?: Float32Array<ArrayBuffer>}} Picture
 *   pixels: RGBA, u8[height, width, 4]; latents: f32[steps, image_tokens, channels], after each step;
 *   features: f32[text_tokens, features]; peak_bytes: most GPU bytes in each phase, weights included
 * @typedef {{rows: number, columns: number, tokens: number}} Grid of latents
 */

/**
 * @param {Float32Array} values
 * @param {string} where
 */
function requireFinite(values, where) {
  const index = values.findIndex((value) => !Number.isFinite(value));
  if (index >= 0) throw new BitbrushError("bad-numbers", `${where}: expected numbers, found ${values[index]} at ${index}`);
}

/**
 * @param {Model} model
 * @param {string} prompt
 * @param {Options} options
 * @returns {Promise<Float32Array<ArrayBuffer>>} f32[text_tokens, features]
 */
function encode(model, prompt, options) {
  const { signal, onProgress } = options;
  const { text } = model.manifest;
  const { ids, mask } = model.tokenize(prompt);
  const rotary = encoderRotary(text.rotary, text.length);
  return model.withExecutor("encoder", { text_tokens: text.length }, options, async (encoder) => {
    encoder.write("token_ids", ids);
    encoder.write("key_mask", mask);
    encoder.write("rotary_cos", rotary.cos);
    encoder.write("rotary_sin", rotary.sin);
    await encoder.run({ signal, onSlice: reporter(onProgress, "encode", "parts") });
    const features = new Float32Array(await encoder.read("features"));
    requireFinite(features, "text features");
    return features;
  });
}

/**
 * @param {Model} model
 * @param {Float32Array<ArrayBuffer>} features
 * @param {Float32Array} sigmas f32[steps + 1]
 * @param {import("./modulation.js").Modulation[]} modulations one a step
 * @param {Request} request
 * @param {Grid} grid
 * @param {Options} options
 * @returns {Promise<Float32Array<ArrayBuffer>[]>} latents after each step, f32[image_tokens, channels]
 */
function denoise(model, features, sigmas, modulations, { steps, seed }, grid, options) {
  const { signal, onProgress } = options;
  const { manifest } = model;
  const textTokens = manifest.text.length;
  const rotary = denoiserRotary(manifest.denoiser.rotary, textTokens, grid.rows, grid.columns);
  const report = reporter(onProgress, "denoise", "steps");
  const symbols = { image_tokens: grid.tokens, text_tokens: textTokens };
  return model.withExecutor("denoiser", symbols, options, async (denoiser) => {
    denoiser.write("features", features);
    const textValues = (textTokens * rotary.cos.length) / (textTokens + grid.tokens);
    for (const kind of /** @type {const} */ (["cos", "sin"])) {
      denoiser.write(`text_rotary_${kind}`, rotary[kind].subarray(0, textValues));
      denoiser.write(`image_rotary_${kind}`, rotary[kind].subarray(textValues));
    }
    denoiser.write("latents", initialLatents(seed, manifest.latents.channels, grid.tokens));
    const elements = manifest.latents.channels * grid.tokens;
    /** @type {Float32Array<ArrayBuffer>[]} */
    const history = [];
    /** Takes the last step's latents once they are here. @type {() => Promise<void>} */
    let take = async () => {};
    for (let step = 0; step < steps; step += 1) {
      // A step begins before the latents of the one before are read, so that the GPU never waits for the page.
      if (step > 0) await denoiser.copy("latents", denoiser.port("next_latents", "output").buffer, 0, elements);
      await writeModulation(model, denoiser, modulations[step]);
      denoiser.write("step_size", Float32Array.of(sigmas[step + 1] - sigmas[step]));
      const onSlice = (/** @type {number} */ done, /** @type {number} */ total) =>
        report(step, steps, (step + done / total) / steps);
      await denoiser.run({ signal, onSlice, wait: false });
      await take();
      const finish = await denoiser.startRead("next_latents");
      take = async () => {
        const latents = new Float32Array(await finish());
        requireFinite(latents, `latents after step ${step + 1}`);
        history.push(latents);
      };
    }
    await denoiser.settle();
    await take();
    report(steps, steps);
    return history;
  });
}

/**
 * @param {Model} model
 * @param {Float32Array<ArrayBuffer>} latents f32[image_tokens, channels]
 * @param {Grid} grid
 * @param {Options} options
 * @returns {Promise<Uint8ClampedArray<ArrayBuffer>>} RGBA
 */
function decode(model, latents, { rows, columns }, options) {
  const { signal, onProgress } = options;
  return model.withExecutor("decoder", { rows, columns }, options, async (decoder) => {
    decoder.write("latents", latents);
    await decoder.run({ signal, onSlice: reporter(onProgress, "decode", "parts") });
    if (decoder.hasOutput("image")) requireFinite(new Float32Array(await decoder.read("image")), "the picture");
    return new Uint8ClampedArray(await decoder.read("pixels"));
  });
}

/**
 * Make a picture. Afterwards, whatever happened, the GPU holds the model's weights and nothing else.
 * @param {Model} model
 * @param {Partial<Record<keyof Request, unknown>>} wanted
 * @param {Options & {latents?: boolean}} options latents: return them and the text features, too
 * @returns {Promise<Picture>}
 */
export async function generate(model, wanted, options) {
  const request = checkRequest(wanted, model.manifest);
  const { downscale } = model.manifest.latents;
  const [rows, columns] = [request.height / downscale, request.width / downscale];
  const grid = { rows, columns, tokens: rows * columns };
  const began = performance.now();
  /** @type {Record<string, number>} */
  const timings = {};
  /** @type {Record<string, number>} */
  const peaks = {};
  /** @type {<T>(phase: string, work: () => Promise<T>) => Promise<T>} */
  const measured = async (phase, work) => {
    const start = performance.now();
    model.context.resetPeak();
    const result = await work();
    [timings[phase], peaks[phase]] = [performance.now() - start, model.context.peakBytes];
    return result;
  };
  const schedule = makeSchedule(model.manifest.schedule, request.steps, grid.tokens);
  const modulations = await findModulations(model, schedule, options, (work) => measured("modulation", work));
  const features = await measured("encode", () =>
    model.textFeatures(request.prompt, () => encode(model, request.prompt, options)));
  const history = await measured("denoise", () =>
    denoise(model, features, schedule.sigmas, modulations, request, grid, options));
  const pixels = await measured("decode", () => decode(model, history[history.length - 1], grid, options));
  throwIfAborted(options.signal);
  return {
    pixels,
    width: request.width,
    height: request.height,
    seed: request.seed,
    timings_ms: { ...timings, total: performance.now() - began },
    peak_bytes: peaks,
    ...(options.latents ? { latents: joined(history), features: features.slice() } : {}),
  };
}

/** @param {Float32Array<ArrayBuffer>[]} arrays of one length */
function joined(arrays) {
  const all = new Float32Array(arrays.length * arrays[0].length);
  arrays.forEach((array, index) => all.set(array, index * array.length));
  return all;
}
