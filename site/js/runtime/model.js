// A loaded model: manifest, plans, pipelines, tokenizer and the weights that stay on the GPU.
//
// Memory: the denoiser and the decoder stay. The encoder is needed once a prompt and can be the largest of
// the three, so it stays only in a small model; else it comes from the browser's cache for a new prompt and
// is freed before denoising. `modulation` is there only while it computes (modulation.js). Where a budget or the
// card itself is too small for that, the components not at work are freed, and come back from the cache. Arenas,
// inputs and outputs live for one run of one component.

import { bandSymbols, symbolsAt } from "./bands.js";
import { findChoice, summaryOf } from "./choice.js";
import { BitbrushError, throwIfAborted } from "./errors.js";
import { Pacer } from "./executor.js";
import { fetchJson } from "./files.js";
import { planBytes } from "./layout.js";
import { ALL_COMPONENTS, COMPONENTS, downloadBytes, parseManifest, residentTensors, shardsOf } from "./manifest.js";
import { boundTensors, parsePlan } from "./plan.js";
import { prepare } from "./prepare.js";
import { bindingLimit, splitPlan } from "./rows.js";
import { checkScheduler } from "./schedule.js";
import { createShardSource } from "./shards.js";
import { loadTokenizer } from "./tokenizer.js";
import { tensorSizes } from "./trial.js";
import { uploadDispatches } from "./trits.js";
import { loadWeights, prefetch, stagingBytes, weightBytes } from "./weights.js";

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
 *   pipelines: import("./pipelines.js").Pipelines, source: import("./shards.js").ShardSource,
 *   kernels: KernelFacts}} Parts
 * @typedef {{summary: string, rejected: import("./choice.js").Rejection[]}} KernelFacts which variants of the kernels
 *   run, in one line, and those that were wrong on this device
 * @typedef {{keepAllBytes?: number, memoryBudget?: number, bindingBytes?: number}} MemoryPolicy
 *   keepAllBytes: up to this many bytes of weights the encoder stays, too; memoryBudget: GPU bytes to stay
 *   within if weights that are not at work can make room; bindingBytes: most bytes of a tensor in one binding
 * @typedef {{signal?: AbortSignal, onProgress: OnProgress}} RunOptions
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
   * @param {MemoryPolicy} policy
   */
  constructor(context, parts, { keepAllBytes = KEEP_ALL_BYTES, memoryBudget = Infinity, bindingBytes }) {
    this.context = context;
    this.manifest = parts.manifest;
    this.plans = parts.plans;
    this.pipelines = parts.pipelines;
    this.source = parts.source;
    this.tokenize = parts.tokenize;
    this.kernels = parts.kernels;
    this.pacer = new Pacer();
    this.bytes = downloadBytes(this.manifest, COMPONENTS);
    this.keepsEncoder = this.bytes <= keepAllBytes;
    this.memoryBudget = memoryBudget;
    this.bindingBytes = bindingBytes;
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
    const { context, source, pipelines, bindingBytes } = this;
    const loaded = await loadWeights(context, component, source,
      { label: `weights:${name}`, pipelines, bindingBytes, ...options });
    this.weights.set(name, loaded);
    return loaded;
  }

  /** @param {ComponentName} name */
  freeWeights(name) {
    this.weights.get(name)?.destroy();
    this.weights.delete(name);
  }

  /**
   * Bytes that a component's weights take on the GPU.
   * @param {ComponentName} name
   */
  weightBytes(name) {
    return weightBytes(this.manifest.components[name], this.context.device.limits, this.bindingBytes);
  }

  /**
   * Download everything that every picture needs, and put on the GPU what stays there.
   * @param {AbortSignal | undefined} signal
   * @param {OnProgress} onProgress
   */
  async fill(signal, onProgress) {
    const onShard = byteCounter(this.manifest, COMPONENTS, reporter(onProgress, "download", "bytes"));
    for (const name of COMPONENTS) {
      const stays = name !== "encoder" || this.keepsEncoder;
      if (stays && this.context.liveBytes + this.weightBytes(name) <= this.memoryBudget) {
        await this.needWeights(name, { signal, onShard });
        continue;
      }
      const shards = shardsOf(this.manifest.components[name]);
      // Into the cache.
      for await (const _ of prefetch(this.source, shards, signal, onShard)) throwIfAborted(signal);
    }
  }

  /**
   * Free weights of other components, the largest first, until `bytes` more fit in what there is.
   * @param {ComponentName} name that stays
   * @param {number} bytes
   * @param {number} available Infinity frees nothing, 0 everything
   * @returns {boolean} whether any were freed
   */
  makeRoom(name, bytes, available) {
    const others = [...this.weights.keys()].filter((other) => other !== name);
    others.sort((a, b) => this.weightBytes(b) - this.weightBytes(a));
    let freed = false;
    for (const other of others) {
      if (this.context.liveBytes + bytes <= available) break;
      this.freeWeights(other);
      freed = true;
    }
    return freed;
  }

  /**
   * Prepare a component at a size, run `body` with it, and free what it took. Weights that are not on the GPU
   * come from the cache.
   * @template T
   * @param {ComponentName} name
   * @param {Record<string, number>} symbols
   * @param {RunOptions} options
   * @param {(executor: import("./executor.js").Executor) => Promise<T>} body
   * @returns {Promise<T>}
   */
  async withExecutor(name, symbols, options, body) {
    const all = { ...bandSymbols(this.context.device.limits), ...symbols };
    const running = planBytes(this.plans[name], all, (dispatch) => this.pipelines.entryOf(dispatch, name));
    const loading = stagingBytes(this.manifest.components[name]);
    const bytes = this.weights.has(name) ? running : this.weightBytes(name) + Math.max(loading, running);
    if (this.makeRoom(name, bytes, this.memoryBudget)) await this.context.reclaim();
    const executor = await this.prepared(name, symbols, options).catch(async (error) => {
      if (error.code !== "out-of-memory" || !this.makeRoom(name, bytes, 0)) throw error;
      await this.context.reclaim();
      // What was refused never was in use.
      this.context.resetPeak();
      return this.prepared(name, symbols, options);
    });
    try {
      return await body(executor);
    } finally {
      executor.destroy();
      await this.context.reclaim();
    }
  }

  /**
   * @param {ComponentName} name
   * @param {Record<string, number>} symbols
   * @param {RunOptions} options
   */
  async prepared(name, symbols, { signal, onProgress }) {
    const { context, pipelines, pacer } = this;
    const onShard = this.weights.has(name) ? undefined
      : byteCounter(this.manifest, [name], reporter(onProgress, "upload", "bytes"));
    const { tensors } = await this.needWeights(name, { signal, onShard });
    return prepare(context, this.plans[name], { symbols, tensors, pipelines, pacer });
  }

  /**
   * Text features of a prompt: kept from last time, or from `encode`. The encoder is gone again afterwards
   * unless the model is small.
   * @param {string} prompt
   * @param {() => Promise<Float32Array<ArrayBuffer>>} encode
   */
  async textFeatures(prompt, encode) {
    if (this.lastText?.prompt === prompt) return this.lastText.features;
    try {
      const features = await encode();
      this.lastText = { prompt, features };
      return features;
    } finally {
      if (!this.keepsEncoder) {
        this.freeWeights("encoder");
        await this.context.reclaim();
      }
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
  const known = new Set(residentTensors(manifest.components[name]).map((tensor) => tensor.name));
  const missing = [...boundTensors(plan)].find((tensor) => !known.has(tensor));
  if (missing) throw new BitbrushError("bad-bundle", `${url}: expected tensor ${missing} in the manifest, found none`);
  return plan;
}

/**
 * Choose the kernels' variants for pictures of the model's own size.
 * @param {DeviceContext} context
 * @param {import("./pipelines.js").Pipelines} pipelines
 * @param {Manifest} manifest
 * @param {Record<ComponentName, Plan>} plans
 * @param {AbortSignal} [signal]
 * @returns {Promise<KernelFacts>}
 */
async function choose(context, pipelines, manifest, plans, signal) {
  const { sizes: { default: usual, presets }, latents: { downscale }, text } = manifest;
  /** @param {number[]} size */
  const at = (size) => symbolsAt(context.device.limits, { downscale, text_tokens: text.length }, size);
  const symbols = at(usual);
  const largest = at(presets.reduce((a, b) => (a[0] * a[1] > b[0] * b[1] ? a : b)));
  const limit = bindingLimit(context.device.limits);
  const parts = COMPONENTS.map((name) =>
    ({ plan: plans[name], tensors: tensorSizes(manifest.components[name], limit), symbols, largest }));
  const choice = await findChoice(context, pipelines, parts, signal);
  return { summary: summaryOf(choice), rejected: choice.rejected };
}

/**
 * Load a model. What this device cannot run is refused before any weights are fetched. On any error or
 * cancel nothing stays on the GPU.
 * @param {DeviceContext} context
 * @param {string} manifestUrl
 * @param {{pipelines: import("./pipelines.js").Pipelines} & RunOptions & MemoryPolicy} options
 * @returns {Promise<Model>}
 */
export async function loadModel(context, manifestUrl, { pipelines, signal, onProgress, ...policy }) {
  const manifest = parseManifest(await fetchJson(manifestUrl, signal), manifestUrl);
  checkScheduler(manifest.schedule);
  const limit = bindingLimit(context.device.limits, policy.bindingBytes);
  const [encoder, modulation, denoiser, decoder, tokenize] = await Promise.all([
    loadPlan(manifest, "encoder", manifestUrl, signal),
    loadPlan(manifest, "modulation", manifestUrl, signal),
    loadPlan(manifest, "denoiser", manifestUrl, signal),
    loadPlan(manifest, "decoder", manifestUrl, signal),
    loadTokenizer(new URL(`${manifest.text.tokenizer}/`, manifestUrl).href, manifest.text, signal),
  ]);
  const plans = { encoder, modulation, denoiser, decoder };
  for (const name of ALL_COMPONENTS) plans[name] = splitPlan(plans[name], manifest.components[name], limit);
  const kernels = pipelines.forceVariant ? { summary: `${pipelines.forceVariant} wherever there is one`, rejected: [] }
    : await choose(context, pipelines, manifest, plans, signal);
  const first = [...COMPONENTS.map((name) => plans[name]), ...uploadDispatches(Object.values(manifest.components))];
  await pipelines.compilePlans(first, signal, reporter(onProgress, "compile", "shaders"));
  const shardsBase = new URL(manifest.shards_url ?? "./", manifestUrl);
  const source = createShardSource(manifest.shards, (shard) => new URL(shard.file, shardsBase).href);
  const model = new Model(context, { manifest, plans, tokenize, pipelines, source, kernels }, policy);
  try {
    await model.fill(signal, onProgress);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return model;
}
