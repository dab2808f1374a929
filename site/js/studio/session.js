// One visit's client of the runtime: loads a model when it is first needed and starts a new worker after
// the graphics device was lost.

/**
 * @typedef {import("./form.js").Model} Model
 * @typedef {import("./form.js").Request} Request
 */

/** Codes after which the worker's device cannot be trusted any more. */
const FATAL = new Set(["device-lost", "out-of-memory"]);

/**
 * @param {() => any} createClient of runtime/client.js
 * @param {string} base address of the folder models/
 * @param {number} [memoryBudget] GPU bytes to stay within
 */
export function createSession(createClient, base, memoryBudget) {
  let client = createClient();
  let loaded = "";
  let kernels = "";

  const restart = () => {
    client.dispose();
    client = createClient();
    loaded = "";
  };

  return {
    /** @returns {Promise<{adapter: unknown, features: string[], limits: Record<string, number>}>} */
    probe: () => client.probe(),

    /** @param {Model} model @returns {boolean} whether the next picture downloads nothing */
    has: (model) => loaded === model.id,

    /** @returns {Promise<{total: number, byLabel: Record<string, number>}>} live GPU bytes */
    memory: () => client.memory(),

    /**
     * @param {Model} model
     * @param {Request} request
     * @param {{signal: AbortSignal, onProgress: (event: any) => void, latents: boolean}} options
     * @returns {Promise<any>} the runtime's result, and `kernels`: which variants made it, in one line
     */
    async run(model, request, { signal, onProgress, latents }) {
      try {
        if (loaded !== model.id) {
          loaded = "";
          const facts = await client.load(new URL(model.manifest, base).href, { signal, onProgress, memoryBudget });
          kernels = facts.kernels.summary;
          loaded = model.id;
        }
        return { ...await client.generate(request, { signal, onProgress, latents }), kernels };
      } catch (error) {
        if (FATAL.has(error?.code)) restart();
        throw error;
      }
    },
  };
}
