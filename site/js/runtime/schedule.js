// Step times of FlowMatchEulerDiscreteScheduler as Flux2KleinPipeline sets them. Each operation is rounded
// to float32 where diffusers does so, so that sigmas are equal to the last bit or nearly.

import { BitbrushError, show } from "./errors.js";

/**
 * @typedef {Record<string, unknown>} SchedulerConfig scheduler_config.json
 * @typedef {{sigmas: Float32Array, timesteps: Float32Array}} Schedule
 *   sigmas: f32[steps + 1], the last one where denoising ends; timesteps: f32[steps], 1000 at pure noise
 */

const { fround } = Math;
const REFUSED = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling", "use_flow_sigmas"];

/**
 * Refuse, when a model is loaded, settings that would need another sampler.
 * @param {SchedulerConfig} config
 */
export function checkScheduler(config) {
  for (const name of REFUSED) {
    if (config[name]) throw unsupported(name, "false", config[name]);
  }
  const type = config.time_shift_type ?? "exponential";
  if (type !== "exponential" && type !== "linear") throw unsupported("time_shift_type", "exponential or linear", type);
  for (const [name, fallback] of Object.entries({ num_train_timesteps: 1000, shift: 1, shift_terminal: 0 })) {
    numberOf(config, name, fallback);
  }
}

/**
 * @param {string} name
 * @param {string} expected
 * @param {unknown} found
 */
function unsupported(name, expected, found) {
  return new BitbrushError("bad-bundle", `schedule, ${name}: expected ${expected}, found ${show(found)}`);
}

/**
 * @param {SchedulerConfig} config
 * @param {string} name
 * @param {number} fallback where the key is missing or null
 */
function numberOf(config, name, fallback) {
  const value = config[name] ?? fallback;
  if (typeof value !== "number" || !Number.isFinite(value)) throw unsupported(name, "a number", value);
  return value;
}

/**
 * The resolution's shift as the pipeline computes it, in float64.
 * @param {number} imageTokens
 * @param {number} steps
 */
export function empiricalMu(imageTokens, steps) {
  const after200 = 0.00016927 * imageTokens + 0.45666666;
  if (imageTokens > 4300) return after200;
  const after10 = 8.73809524e-5 * imageTokens + 1.89833333;
  const slope = (after200 - after10) / 190;
  return slope * steps + (after200 - 200 * slope);
}

/**
 * @param {number} sigma f32
 * @param {SchedulerConfig} config
 * @param {number} mu
 */
function shiftSigma(sigma, config, mu) {
  if (config.use_dynamic_shifting) {
    const strength = fround(config.time_shift_type === "linear" ? mu : Math.exp(mu));
    const odds = fround(fround(1 / sigma) - 1);
    return fround(strength / fround(strength + odds));
  }
  const shift = numberOf(config, "shift", 1);
  return fround(fround(shift * sigma) / fround(1 + fround(fround(shift - 1) * sigma)));
}

/**
 * The schedule of a run.
 * @param {SchedulerConfig} config
 * @param {number} steps
 * @param {number} imageTokens
 * @returns {Schedule}
 */
export function makeSchedule(config, steps, imageTokens) {
  checkScheduler(config);
  const mu = empiricalMu(imageTokens, steps);
  const stepSize = steps > 1 ? (1 / steps - 1) / (steps - 1) : 0; // numpy.linspace(1, 1 / steps, steps)
  let sigmas = Array.from({ length: steps }, (_, index) => {
    const isLast = steps > 1 && index === steps - 1;
    return shiftSigma(fround(isLast ? 1 / steps : 1 + index * stepSize), config, mu);
  });
  const terminal = numberOf(config, "shift_terminal", 0);
  if (terminal) {
    const scale = fround(fround(1 - sigmas[steps - 1]) / fround(1 - terminal));
    sigmas = sigmas.map((sigma) => fround(1 - fround(fround(1 - sigma) / scale)));
  }
  if (config.invert_sigmas) sigmas = sigmas.map((sigma) => fround(1 - sigma));
  const trainSteps = numberOf(config, "num_train_timesteps", 1000);
  return {
    sigmas: Float32Array.from([...sigmas, config.invert_sigmas ? 1 : 0]),
    timesteps: Float32Array.from(sigmas, (sigma) => sigma * trainSteps),
  };
}
