// One error class for everything a person can act on. `code` is stable: pages map it to their own words.

/**
 * @typedef {"no-webgpu" | "no-adapter" | "limit-too-low" | "network" | "hash-mismatch" | "bad-bundle" |
 *   "bad-request" | "device-lost" | "out-of-memory" | "shader-compile" | "bad-numbers" | "aborted"} ErrorCode
 * @typedef {{code: ErrorCode, message: string, hint: string}} ErrorRecord what crosses the worker's border
 */

/** @type {Record<ErrorCode, string>} */
const HINTS = {
  "no-webgpu": "Use a current version of Chrome, Edge, Safari or Firefox, over https or from localhost.",
  "no-adapter": "Switch on graphics acceleration in the browser's settings, or update the graphics driver.",
  "limit-too-low": "Try a smaller size or a smaller model, or a device with a larger graphics card.",
  network: "Check the connection and try again; what has arrived already is kept.",
  "hash-mismatch": "Load the page again; if it happens again, the files on the server are damaged.",
  "bad-bundle": "Build the site again with the version of Bitbrush that this page belongs to.",
  "bad-request": "Change the value and try again.",
  "device-lost": "Load the model again; close other programs that use the graphics card.",
  "out-of-memory": "Try a smaller size, or close other tabs and programs.",
  "shader-compile": "Update the browser and the graphics driver.",
  "bad-numbers": "Try another seed or the baseline kernels; nothing was saved.",
  aborted: "",
};

/** An error with a stable `code`, a one-sentence `message` and a `hint` that says what to do. */
export class BitbrushError extends Error {
  /**
   * @param {ErrorCode} code
   * @param {string} message what was expected, what was found, where
   * @param {{hint?: string, cause?: unknown}} [options]
   */
  constructor(code, message, options = {}) {
    super(message, { cause: options.cause });
    this.name = "BitbrushError";
    /** @type {ErrorCode} */
    this.code = code;
    /** @type {string} */
    this.hint = options.hint ?? HINTS[code];
  }

  /** @returns {ErrorRecord} */
  toRecord() {
    return { code: this.code, message: this.message, hint: this.hint };
  }

  /** @param {ErrorRecord} record */
  static fromRecord(record) {
    return new BitbrushError(record.code, record.message, { hint: record.hint });
  }
}

/**
 * Any thrown value as a BitbrushError; `code` is for what is not one yet.
 * @param {unknown} error
 * @param {ErrorCode} code
 * @param {string} [where] put before the message of a foreign error
 */
export function asBitbrushError(error, code, where) {
  if (error instanceof BitbrushError) return error;
  if (error instanceof DOMException && error.name === "AbortError") return aborted();
  const text = error instanceof Error ? error.message : String(error);
  return new BitbrushError(code, where ? `${where}: ${text}` : text, { cause: error });
}

export function aborted() {
  return new BitbrushError("aborted", "the request was cancelled");
}

/**
 * Throw if the signal has fired.
 * @param {AbortSignal | undefined} signal
 */
export function throwIfAborted(signal) {
  if (signal?.aborted) throw aborted();
}

/** @param {unknown} value for messages: short JSON */
export function show(value) {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
