// The page's side of the worker: promises, progress callbacks, AbortSignals.

import { BitbrushError, aborted } from "./errors.js";

/**
 * @typedef {import("./device.js").ProbeResult} ProbeResult
 * @typedef {import("./device.js").MemoryReport} MemoryReport
 * @typedef {import("./model.js").OnProgress} OnProgress
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./request.js").Request} Request
 * @typedef {import("./generate.js").Picture} Picture
 * @typedef {{name: string, variant: string, sizes: Manifest["sizes"], text: Manifest["text"], bytes: number,
 *   kernels: import("./model.js").KernelFacts}} LoadedModel
 * @typedef {{signal?: AbortSignal, onProgress?: OnProgress}} CallOptions
 * @typedef {{resolve: (value: any) => void, reject: (error: Error) => void, onProgress?: OnProgress}} Pending
 * @typedef {ReturnType<typeof createClient>} Client
 */

/**
 * Start the runtime in a worker of its own.
 * @param {import("./worker.js").Settings} [settings] for tests and troubleshooting
 */
export function createClient(settings) {
  const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  /** @type {Map<number, Pending>} */
  const pending = new Map();
  let nextId = 1;
  /** @type {BitbrushError | null} */
  let closed = null;

  worker.addEventListener("message", (/** @type {MessageEvent<import("./worker.js").Answer>} */ { data: answer }) => {
    const call = pending.get(answer.id);
    if (!call) return;
    if (answer.type === "progress") {
      call.onProgress?.(answer.progress);
      return;
    }
    pending.delete(answer.id);
    if (answer.type === "result") call.resolve(answer.value);
    else call.reject(BitbrushError.fromRecord(answer.error));
  });
  worker.addEventListener("error", (event) => {
    close(new BitbrushError("network", `the runtime's worker did not start: ${event.message || "a script is missing"}`));
  });

  /** @param {BitbrushError} reason */
  function close(reason) {
    closed ??= reason;
    worker.terminate();
    for (const call of pending.values()) call.reject(reason);
    pending.clear();
  }

  /**
   * @param {{type: string, [key: string]: unknown}} question
   * @param {CallOptions} [options]
   * @returns {Promise<any>}
   */
  function ask(question, { signal, onProgress } = {}) {
    if (closed) return Promise.reject(closed);
    if (signal?.aborted) return Promise.reject(aborted());
    const id = nextId;
    nextId += 1;
    const cancel = () => worker.postMessage({ id, type: "cancel", target: id });
    signal?.addEventListener("abort", cancel);
    return new Promise((resolve, reject) => {
      pending.set(id, { resolve, reject, onProgress });
      worker.postMessage({ id, ...question });
    }).finally(() => signal?.removeEventListener("abort", cancel));
  }

  if (settings) ask({ type: "configure", settings }).catch(() => {}); // only dispose() can reject it

  return {
    /**
     * What the graphics adapter is and can do.
     * @returns {Promise<ProbeResult>}
     */
    probe: () => ask({ type: "probe" }),

    /**
     * Download a model and put it on the GPU, in place of the one before.
     * @param {string} manifestUrl absolute
     * @param {CallOptions & {memoryBudget?: number}} [options] memoryBudget: GPU bytes to stay within where
     *   freeing weights that are not at work allows it
     * @returns {Promise<LoadedModel>}
     */
    load: (manifestUrl, options) => ask({ type: "load", manifestUrl, memoryBudget: options?.memoryBudget }, options),

    /**
     * Make a picture with the loaded model.
     * @param {Request} request
     * @param {CallOptions & {latents?: boolean}} [options]
     * @returns {Promise<Picture>}
     */
    generate: ({ prompt, width, height, steps, seed }, options = {}) =>
      ask({ type: "generate", request: { prompt, width, height, steps, seed }, latents: Boolean(options.latents) }, options),

    /**
     * Live GPU bytes.
     * @returns {Promise<MemoryReport>}
     */
    memory: () => ask({ type: "memory" }),

    /** Stop the worker at once; whatever waits is rejected with `aborted`. */
    dispose: () => close(aborted()),
  };
}
