// A loaded model: manifest, plans, pipelines, tokenizer and the weights that stay on the GPU.
//
// Memory: the denoiser and the decoder stay. The encoder is needed once a prompt and can be the largest of
// the three, so it stays only in a small model; else it comes from the browser's cache for a new prompt and
// is freed before denoising. `modulation` is there only while it computes (modulation.js). Arenas, inputs and
// outputs live for one run of one component.

import { BitbrushError, throwIfAborted } from "./errors.js";
import { Pacer } from "./executor.js";
import { fetchJson } from "./files.js";
import { COMPONENTS, downloadBytes, parseManifest, shardsOf } from "./manifest.js";
import { boundTensors, parsePlan } from "./plan.js";
import { prepare } from "./prepare.js";
import { checkScheduler } from "./schedule.js";
import { createShardSource } from "./shards.js";
import { loadTokenizer } from "./tokenizer.js";
import { checkTensorLimits, loadWeights, prefetch } from "./weights.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./manifest.js").ComponentName} ComponentName
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {import("./weights.js").Weights} Weights
 * @typedef {"download" | "upload" | "compile" | "encode" | "denoise" | "decode"} Phase
 * @typedef {{phase: Phase, done: number, total: number, unit: string, fraction: number}} Progress
 *   fraction: of the phase, 0 to 1, finer than done / total where a single step is long
 * @typedef {(progress: Progress) => void} OnProgress
 * @typedef {{manifest: Manifest, plans: Record<ComponentName, Plan>, tokenize: import("./tokenizer.js").Tokenize,
 *   pipelines: import("./pipelines.js").Pipelines, source: import("./shards.js").ShardSource}} Parts
 */

/** Up to this many bytes of weights all components stay on the GPU. */
const KEEP_ALL_BYTES = 256e6;

/**
 * @param {OnProgress} onProgress
 * @param {Phase} phase
 * @param {string} unit
 * @returns {(done: number, total: number, fraction?: number) => void}
 */
export function reporter(onProgress, phase, unit) {
  return (done, total, fraction = total > 0 ? done / total : 1) => onProgress({ phase, done, total, unit, fraction });
}

/**
 * Bytes of several shards as one number that never falls, whatever is fetched again.
 * @param {Manifest} manifest
 * @param {ComponentName[]} names
 * @param {(done: number, total: number) => void} report
 * @returns {(index: number, received: number) => void}
 */
export function byteCounter(manifest, names, report) {
  const total = downloadBytes(manifest, names);
  /** @type {Map<number, number>} */
  const received = new Map();
  let most = 0;
  report(0, total);
  return (index, bytes) => {
    received.set(index, Math.max(bytes, received.get(index) ?? 0));
    const sum = [...received.values()].reduce((a, b) => a + b, 0);
    if (sum <= most) return;
    most = sum;
    report(most, total);
  };
}

export class Model {
  /**
   * @param {DeviceContext} context
   * @param {Parts} parts
   * @param {number} keepAllBytes
   */
  constructor(context, parts, keepAllBytes) {
    this.context = context;
    this.manifest = parts.manifest;
    this.plans = parts.plans;
    this.pipelines = parts.pipelines;
    this.source = parts.source;
    this.tokenize = parts.tokenize;
    this.pacer = new Pacer();
    this.bytes = downloadBytes(this.manifest, COMPONENTS);
    this.keepsEncoder = this.bytes <= keepAllBytes;
    /** @type {Map<ComponentName, Weights>} */
    this.weights = new Map();
    /** Text features of the last prompt. @type {{prompt: string, features: Float32Array<ArrayBuffer>} | null} */
    this.lastText = null;
    /** Of the last request with times that the table does not have, by sigma.
     * @type {Map<number, Float32Array<ArrayBuffer>>} */
    this.lastModulations = new Map();
  }

  /**
   * Bring a component's weights to the GPU; they stay until `freeWeights`.
   * @param {ComponentName} name
   * @param {{signal?: AbortSignal, onShard?: (index: number, received: number) => void}} options
   */
  async needWeights(name, options) {
    const known = this.weights.get(name);
    if (known) return known;
    const component = this.manifest.components[name];
    const loaded = await loadWeights(this.context, component, this.source, { label: `weights:${name}`, ...options });
    this.weights.set(name, loaded);
    return loaded;
  }

  /** @param {ComponentName} name */
  freeWeights(name) {
    this.weights.get(name)?.destroy();
    this.weights.delete(name);
  }

  /**
   * Download everything that every picture needs, and put on the GPU what stays there.
   * @param {AbortSignal | undefined} signal
   * @param {OnProgress} onProgress
   */
  async fill(signal, onProgress) {
    const onShard = byteCounter(this.manifest, COMPONENTS, reporter(onProgress, "download", "bytes"));
    for (const name of COMPONENTS) {
      if (name !== "encoder" || this.keepsEncoder) {
        await this.needWeights(name, { signal, onShard });
        continue;
      }
      const shards = shardsOf(this.manifest.components[name]);
      for await (const _ of prefetch(this.source, shards, signal, onShard)) throwIfAborted(signal); // into the cache
    }
  }

  /**
   * Prepare a component at a size, run `body` with it, and free what it took.
   * @template T
   * @param {ComponentName} name
   * @param {Record<string, number>} symbols
   * @param {(executor: import("./executor.js").Executor) => Promise<T>} body
   * @returns {Promise<T>}
   */
  async withExecutor(name, symbols, body) {
    const { tensors } = /** @type {Weights} */ (this.weights.get(name));
    const { pipelines, pacer } = this;
    const executor = await prepare(this.context, this.plans[name], { symbols, tensors, pipelines, pacer });
    try {
      return await body(executor);
    } finally {
      executor.destroy();
    }
  }

  /**
   * Text features of a prompt: kept from last time, or from `encode`, which finds the encoder's weights in
   * place. They are gone again afterwards unless the model is small.
   * @param {string} prompt
   * @param {{signal?: AbortSignal, onProgress: OnProgress}} options
   * @param {() => Promise<Float32Array<ArrayBuffer>>} encode
   */
  async textFeatures(prompt, { signal, onProgress }, encode) {
    if (this.lastText?.prompt === prompt) return this.lastText.features;
    try {
      if (!this.weights.has("encoder")) {
        const onShard = byteCounter(this.manifest, ["encoder"], reporter(onProgress, "upload", "bytes"));
        await this.needWeights("encoder", { signal, onShard });
      }
      const features = await encode();
      this.lastText = { prompt, features };
      return features;
    } finally {
      if (!this.keepsEncoder) this.freeWeights("encoder");
    }
  }

  dispose() {
    for (const name of [...this.weights.keys()]) this.freeWeights(name);
    this.lastText = null;
    this.lastModulations.clear();
  }
}

/**
 * @param {Manifest} manifest
 * @param {ComponentName} name
 * @param {string} manifestUrl
 * @param {AbortSignal} [signal]
 */
async function loadPlan(manifest, name, manifestUrl, signal) {
  const url = new URL(manifest.components[name].plan, manifestUrl).href;
  const plan = parsePlan(await fetchJson(url, signal), url);
  const missing = [...boundTensors(plan)].find((tensor) => !Object.hasOwn(manifest.components[name].tensors, tensor));
  if (missing) throw new BitbrushError("bad-bundle", `${url}: expected tensor ${missing} in the manifest, found none`);
  return plan;
}

/**
 * Load a model. What this device cannot run is refused before any weights are fetched. On any error or
 * cancel nothing stays on the GPU.
 * @param {DeviceContext} context
 * @param {string} manifestUrl
 * @param {{pipelines: import("./pipelines.js").Pipelines, signal?: AbortSignal, onProgress: OnProgress,
 *   keepAllBytes?: number}} options keepAllBytes: up to this many bytes of weights the encoder stays, too
 * @returns {Promise<Model>}
 */
export async function loadModel(context, manifestUrl, { pipelines, signal, onProgress, keepAllBytes = KEEP_ALL_BYTES }) {
  const manifest = parseManifest(await fetchJson(manifestUrl, signal), manifestUrl);
  checkScheduler(manifest.schedule);
  for (const name of COMPONENTS) checkTensorLimits(manifest.components[name], context.device.limits);
  const [encoder, modulation, denoiser, decoder, tokenize] = await Promise.all([
    loadPlan(manifest, "encoder", manifestUrl, signal),
    loadPlan(manifest, "modulation", manifestUrl, signal),
    loadPlan(manifest, "denoiser", manifestUrl, signal),
    loadPlan(manifest, "decoder", manifestUrl, signal),
    loadTokenizer(new URL(`${manifest.text.tokenizer}/`, manifestUrl).href, manifest.text, signal),
  ]);
  const plans = { encoder, modulation, denoiser, decoder };
  const first = COMPONENTS.map((name) => plans[name]);
  await pipelines.compilePlans(first, signal, reporter(onProgress, "compile", "shaders"));
  const shardsBase = new URL(manifest.shards_url ?? "./", manifestUrl);
  const source = createShardSource(manifest.shards, (shard) => new URL(shard.file, shardsBase).href);
  const model = new Model(context, { manifest, plans, tokenize, pipelines, source }, keepAllBytes);
  try {
    await model.fill(signal, onProgress);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return model;
}
