// What the denoiser takes of each step's time: rows of a table for the schedules that a model is shipped
// with; else vectors that the component `modulation` computes. Its weights are fetched only then, and they
// are on the GPU only meanwhile.

import { byteCounter, reporter } from "./model.js";
import { timestepFeatures } from "./rotary.js";

/**
 * @typedef {import("./model.js").Model} Model
 * @typedef {number | Float32Array<ArrayBuffer>} Modulation a row of the table, or f32[width]
 */

/**
 * @param {Model} model
 * @param {import("./schedule.js").Schedule} schedule
 * @param {{signal?: AbortSignal, onProgress: import("./model.js").OnProgress}} options
 * @param {<T>(work: () => Promise<T>) => Promise<T>} measured runs what is computed
 * @returns {Promise<Modulation[]>} one a step
 */
export async function findModulations(model, { sigmas, timesteps }, options, measured) {
  const known = model.manifest.modulation.sigmas;
  const steps = Array.from(timesteps, (timestep, index) => {
    const sigma = sigmas[index];
    return { timestep, sigma, row: known.indexOf(sigma) };
  });
  const others = steps.filter(({ row }) => row < 0);
  if (others.some(({ sigma }) => !model.lastModulations.has(sigma))) {
    const vectors = await measured(() => compute(model, others.map(({ timestep }) => timestep), options));
    model.lastModulations = new Map(others.map(({ sigma }, index) => [sigma, vectors[index]]));
  }
  return steps.map(({ row, sigma }) => (row < 0 ? /** @type {Modulation} */ (model.lastModulations.get(sigma)) : row));
}

/**
 * @param {Model} model
 * @param {number[]} timesteps
 * @param {{signal?: AbortSignal, onProgress: import("./model.js").OnProgress}} options
 */
async function compute(model, timesteps, options) {
  const { manifest } = model;
  const { signal, onProgress } = options;
  const onShard = byteCounter(manifest, ["modulation"], reporter(onProgress, "download", "bytes"));
  try {
    await model.needWeights("modulation", { signal, onShard });
    return await model.withExecutor("modulation", {}, options, async (modulation) => {
      const vectors = [];
      for (const timestep of timesteps) {
        modulation.write("timestep_features", timestepFeatures(timestep, manifest.denoiser.timestep_features));
        await modulation.run({ signal });
        vectors.push(new Float32Array(await modulation.read("modulation")));
      }
      return vectors;
    });
  } finally {
    model.freeWeights("modulation");
  }
}

/**
 * Give a step's modulation to the denoiser.
 * @param {Model} model
 * @param {import("./executor.js").Executor} denoiser
 * @param {Modulation} modulation
 */
export async function writeModulation(model, denoiser, modulation) {
  if (typeof modulation !== "number") {
    denoiser.write("modulation", modulation);
    return;
  }
  const { table, width } = model.manifest.modulation;
  const { tensors } = /** @type {import("./weights.js").Weights} */ (model.weights.get("denoiser"));
  const { buffer, offset } = /** @type {import("./weights.js").TensorPlace} */ (tensors.get(table));
  await denoiser.copy("modulation", buffer, offset + 4 * width * modulation, width);
}
