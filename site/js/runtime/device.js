// Opens the GPU. Every buffer is made and destroyed here, so live bytes are known by label, and loss of
// the device or an uncaptured error always becomes a BitbrushError.

import { BitbrushError, asBitbrushError } from "./errors.js";

/** Asked for as high as the adapter goes: weights and arenas are large, some variants use big workgroups. */
const RAISED_LIMITS = /** @type {const} */ ([
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupSizeZ",
]);

/** Taken when the adapter has them; kernels' variants ask for them by name, nothing requires them. */
const WANTED_FEATURES = /** @type {GPUFeatureName[]} */ ([
  "shader-f16", "subgroups", "timestamp-query", "chromium-experimental-subgroup-matrix",
]);

/**
 * @typedef {{vendor: string, architecture: string, device: string, description: string, fallback: boolean}} AdapterFacts
 * @typedef {{componentType: string, resultComponentType: string, M: number, N: number, K: number}} MatrixConfig
 *   sizes and types of matrices that a subgroup multiplies
 * @typedef {{adapter: AdapterFacts, features: string[], limits: Record<string, number>,
 *   subgroupMatrixConfigs: MatrixConfig[], offers: string[]}} ProbeResult offers: features of the adapter and of the
 *   browser's WGSL that variants of kernels may use; none where a CPU computes, as no variant is tried there
 * @typedef {{total: number, byLabel: Record<string, number>}} MemoryReport live GPU bytes
 */

/**
 * Find the adapter.
 * @param {GPU | undefined} gpu navigator.gpu
 * @returns {Promise<GPUAdapter>}
 */
export async function findAdapter(gpu) {
  if (!gpu) {
    const insecure = globalThis.isSecureContext === false;
    throw new BitbrushError(
      "no-webgpu",
      insecure ? "WebGPU needs a page served over https or from localhost, this one is not"
        : "expected a browser with WebGPU, this one has none",
    );
  }
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new BitbrushError("no-adapter", "WebGPU is here but offers no graphics adapter");
  return adapter;
}

/** @param {GPUSupportedLimits} limits */
function pickLimits(limits) {
  /** @type {Record<string, number>} */
  const picked = {};
  for (const name of RAISED_LIMITS) {
    const value = limits[name];
    if (value !== undefined) picked[name] = value;
  }
  return picked;
}

/**
 * @param {GPUAdapterInfo} info
 * @returns {MatrixConfig[]} empty where the browser does not know of them
 */
function matrixConfigs(info) {
  const { subgroupMatrixConfigs = [] } = /** @type {{subgroupMatrixConfigs?: MatrixConfig[]}} */ (info);
  return Array.from(subgroupMatrixConfigs, ({ componentType, resultComponentType, M, N, K }) =>
    ({ componentType, resultComponentType, M, N, K }));
}

/**
 * What the adapter is and can do.
 * @param {GPUAdapter} adapter
 * @param {Iterable<string>} [language] extensions of WGSL
 * @returns {ProbeResult}
 */
export function describeAdapter(adapter, language = []) {
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
  const facts = { vendor, architecture, device, description, fallback: isFallbackAdapter };
  return {
    adapter: facts,
    features: [...adapter.features].sort(),
    limits: pickLimits(adapter.limits),
    subgroupMatrixConfigs: matrixConfigs(adapter.info),
    offers: isSoftware(facts) ? [] : [...adapter.features, ...language].sort(),
  };
}

/**
 * Whether a CPU computes.
 * @param {AdapterFacts} adapter
 */
export function isSoftware(adapter) {
  return adapter.fallback || /swiftshader|llvmpipe/i.test(Object.values(adapter).join(" "));
}

/** A device with its failures typed and its bytes counted. */
export class DeviceContext {
  /**
   * @param {GPUDevice} device
   * @param {ProbeResult} facts of the adapter
   * @param {Iterable<string>} [language] extensions of WGSL
   */
  constructor(device, facts, language = []) {
    this.device = device;
    this.facts = facts;
    /** What variants may ask for by name. */
    this.features = new Set([...device.features, ...language]);
    /** @type {BitbrushError | null} */
    this.failure = null;
    /** @type {Map<GPUBuffer, {label: string, size: number}>} */
    this.live = new Map();
    /** Bytes of the live buffers, now and at most since resetPeak(). */
    this.liveBytes = 0;
    this.peakBytes = 0;
    this.closed = false;
    /** Settles only by throwing, when the device goes. @type {Promise<never>} */
    this.lost = device.lost.then((info) => {
      const detail = info.message ? `: ${info.message.trim().split("\n")[0]}` : "";
      this.failure = new BitbrushError("device-lost", `the graphics device was lost (${info.reason})${detail}`);
      throw this.failure;
    });
    // Reported by guard() to whoever waits.
    this.lost.catch(() => {});
    device.addEventListener("uncapturederror", (event) => {
      event.preventDefault();
      this.failure ??= fromGpuError(event.error, "uncaptured");
    });
  }

  get isLost() {
    return this.failure?.code === "device-lost";
  }

  /** Throw what went wrong since the last check. Loss stays, other failures are reported once. */
  check() {
    const failure = this.failure;
    if (!failure) return;
    if (failure.code !== "device-lost") this.failure = null;
    throw failure;
  }

  /**
   * Wait for GPU work; throws if the device is lost meanwhile.
   * @template T
   * @param {Promise<T>} promise
   * @returns {Promise<T>}
   */
  async guard(promise) {
    const value = await Promise.race([promise, this.lost]);
    this.check();
    return value;
  }

  /**
   * Run the WebGPU calls in `action` and throw the errors that WebGPU itself finds in them, typed.
   * @template T
   * @param {string} what for the message
   * @param {() => T} action synchronous, so that no other work falls into its error scopes
   * @returns {Promise<T>}
   */
  async scoped(what, action) {
    this.check();
    this.device.pushErrorScope("out-of-memory");
    this.device.pushErrorScope("internal");
    this.device.pushErrorScope("validation");
    /** @type {T | undefined} */
    let value;
    /** @type {unknown} */
    let thrown;
    try {
      value = action();
    } catch (error) {
      thrown = error;
    }
    const errors = await this.guard(Promise.all([
      this.device.popErrorScope(), this.device.popErrorScope(), this.device.popErrorScope(),
    ]));
    // Pushed first, so popped last; without memory everything after fails validation.
    const memory = errors[2];
    if (memory) throw fromGpuError(memory, what);
    if (thrown) throw asBitbrushError(thrown, "bad-bundle", what);
    const other = errors[0] ?? errors[1];
    if (other) throw fromGpuError(other, what);
    return /** @type {T} */ (value);
  }

  /**
   * @param {string} label memory is reported by it
   * @param {number} size bytes
   * @param {GPUBufferUsageFlags} usage
   */
  createBuffer(label, size, usage) {
    const limit = this.device.limits.maxBufferSize;
    if (size > limit) {
      throw new BitbrushError("limit-too-low", `${label}: needs a buffer of ${size} bytes, this device allows ${limit}`);
    }
    const buffer = this.device.createBuffer({ label, size, usage });
    this.live.set(buffer, { label, size });
    this.liveBytes += size;
    this.peakBytes = Math.max(this.peakBytes, this.liveBytes);
    return buffer;
  }

  /** @param {GPUBuffer} buffer */
  destroyBuffer(buffer) {
    buffer.destroy();
    this.liveBytes -= this.live.get(buffer)?.size ?? 0;
    this.live.delete(buffer);
  }

  /**
   * Wait until the memory of destroyed buffers is back: the driver lets go of it with the end of the next submit.
   * Else what is allocated next would lie beside it.
   */
  async reclaim() {
    if (this.isLost) return;
    this.device.queue.submit([this.device.createCommandEncoder().finish()]);
    await Promise.race([this.device.queue.onSubmittedWorkDone(), this.lost]).catch(() => {}); // guard() reports a loss
  }

  /** Count the peak from now on. */
  resetPeak() {
    this.peakBytes = this.liveBytes;
  }

  /** @returns {MemoryReport} */
  memory() {
    /** @type {MemoryReport} */
    const report = { total: this.liveBytes, byLabel: {} };
    for (const { label, size } of this.live.values()) {
      report.byLabel[label] = (report.byLabel[label] ?? 0) + size;
    }
    return report;
  }

  close() {
    this.closed = true;
    for (const buffer of this.live.keys()) buffer.destroy();
    this.live.clear();
    this.liveBytes = 0;
    this.device.destroy();
  }
}

/**
 * @param {GPUError} error
 * @param {string} what
 */
function fromGpuError(error, what) {
  const text = error.message.trim().split("\n")[0];
  if (error instanceof GPUOutOfMemoryError) {
    return new BitbrushError("out-of-memory", `${what}: the graphics card has not enough free memory (${text})`);
  }
  if (error instanceof GPUValidationError) return new BitbrushError("bad-bundle", `${what}: WebGPU refused: ${text}`);
  return new BitbrushError("device-lost", `${what}: the graphics driver failed: ${text}`);
}

/**
 * Open the device.
 * @param {GPU | undefined} gpu navigator.gpu
 * @param {{baseline?: boolean}} [options] baseline: core limits, no feature, as on the weakest device
 * @returns {Promise<DeviceContext>}
 */
export async function openDevice(gpu, options = {}) {
  const adapter = await findAdapter(gpu);
  const facts = describeAdapter(adapter);
  const requiredFeatures = options.baseline ? [] : WANTED_FEATURES.filter((name) => adapter.features.has(name));
  const requiredLimits = options.baseline ? {} : facts.limits;
  try {
    const language = options.baseline ? [] : gpu?.wgslLanguageFeatures;
    return new DeviceContext(await adapter.requestDevice({ requiredFeatures, requiredLimits }), facts, language);
  } catch (error) {
    throw asBitbrushError(error, "no-adapter", "the graphics adapter gave no device");
  }
}
