// The runtime's worker: one device, one model, one request at a time; cancels and questions come through
// at any moment. Messages are tagged both ways: {id, type, ...}.

import { describeAdapter, findAdapter, openDevice } from "./device.js";
import { BitbrushError, asBitbrushError, throwIfAborted } from "./errors.js";
import { generate } from "./generate.js";
import { loadModel } from "./model.js";
import { loadPipelines } from "./pipelines.js";

/**
 * @typedef {import("./model.js").Progress} Progress
 * @typedef {{baseline?: boolean, forceVariant?: string, keepAllBytes?: number, bindingBytes?: number}} Settings
 *   baseline: core limits, no feature; forceVariant: this variant of every kernel that has it;
 *   keepAllBytes, bindingBytes: see MemoryPolicy in model.js
 * @typedef {{id: number} & (
 *   {type: "configure", settings: Settings} | {type: "probe"} |
 *   {type: "load", manifestUrl: string, memoryBudget?: number} |
 *   {type: "generate", request: Record<string, unknown>, latents: boolean} | {type: "memory"} |
 *   {type: "cancel", target: number} | {type: "dispose"})} Question
 * @typedef {{id: number} & (
 *   {type: "progress", progress: Progress} | {type: "result", value: unknown} |
 *   {type: "error", error: import("./errors.js").ErrorRecord})} Answer
 */

const KERNELS_URL = new URL("../../kernels/index.json", import.meta.url).href;

/** @type {Settings} */
let settings = {};
/** @type {import("./device.js").DeviceContext | null} */
let context = null;
/** Kept from model to model, so that a kernel is compiled once. @type {import("./pipelines.js").Pipelines | null} */
let pipelines = null;
/** @type {import("./model.js").Model | null} */
let model = null;
/** The request at work, which the next one waits for. @type {Promise<unknown>} */
let busy = Promise.resolve();
/** @type {Map<number, AbortController>} */
const controllers = new Map();

/** @returns {Promise<import("./device.js").DeviceContext>} a device that works */
async function needDevice() {
  if (context?.isLost) {
    context.close();
    context = pipelines = model = null;
  }
  context ??= await openDevice(navigator.gpu, settings);
  return context;
}

/**
 * @param {{manifestUrl: string, memoryBudget?: number}} question
 * @param {AbortSignal} signal
 * @param {(progress: Progress) => void} onProgress
 */
async function load({ manifestUrl, memoryBudget }, signal, onProgress) {
  model?.dispose();
  model = null;
  const device = await needDevice();
  pipelines ??= await loadPipelines(device, KERNELS_URL, settings.forceVariant);
  const { keepAllBytes, bindingBytes } = settings;
  const policy = { keepAllBytes, bindingBytes, memoryBudget };
  model = await loadModel(device, manifestUrl, { pipelines, signal, onProgress, ...policy });
  const { name, variant, sizes, text } = model.manifest;
  return { name, variant, sizes, text, bytes: model.bytes, kernels: model.kernels };
}

/**
 * @param {Question} question
 * @param {AbortSignal} signal
 * @param {(progress: Progress) => void} onProgress
 * @returns {Promise<unknown>}
 */
async function answer(question, signal, onProgress) {
  throwIfAborted(signal);
  if (question.type === "load") return load(question, signal, onProgress);
  if (question.type === "generate") {
    if (context?.isLost) context.check();
    if (!model) throw new BitbrushError("bad-request", "generate: expected a loaded model, found none");
    return generate(model, question.request, { signal, onProgress, latents: question.latents });
  }
  throw new BitbrushError("bad-request", `expected a known kind of message, found ${question.type}`);
}

/**
 * @param {Question} question
 * @returns {Promise<unknown>}
 */
async function handle(question) {
  const { id } = question;
  if (question.type === "configure") {
    settings = question.settings;
    return null;
  }
  if (question.type === "probe") return describeAdapter(await findAdapter(navigator.gpu), navigator.gpu.wgslLanguageFeatures);
  if (question.type === "memory") return context ? context.memory() : { total: 0, byLabel: {} };
  if (question.type === "dispose") {
    for (const controller of controllers.values()) controller.abort();
    await busy;
    model?.dispose();
    context?.close();
    context = pipelines = model = null;
    return null;
  }
  const controller = new AbortController();
  controllers.set(id, controller);
  const work = busy.then(() => answer(question, controller.signal, (progress) => send({ id, type: "progress", progress })));
  busy = work.catch(() => {});
  try {
    return await work;
  } finally {
    controllers.delete(id);
  }
}

/**
 * @param {Answer} message
 * @param {Transferable[]} [transfer]
 */
function send(message, transfer = []) {
  postMessage(message, { transfer });
}

/** @param {unknown} value @returns {Transferable[]} the large arrays of a picture */
function transferables(value) {
  if (typeof value !== "object" || value === null) return [];
  return Object.values(value).flatMap((part) => (ArrayBuffer.isView(part) ? [/** @type {ArrayBuffer} */ (part.buffer)] : []));
}

addEventListener("message", async (/** @type {MessageEvent<Question>} */ { data: question }) => {
  if (question.type === "cancel") {
    controllers.get(question.target)?.abort();
    return;
  }
  try {
    const value = await handle(question);
    send({ id: question.id, type: "result", value }, transferables(value));
  } catch (error) {
    send({ id: question.id, type: "error", error: asBitbrushError(error, "bad-bundle", "internal error").toRecord() });
  }
});
