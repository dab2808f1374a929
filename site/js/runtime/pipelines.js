// Kernels by name and options -> compute pipelines. The variant is chosen by what the device has, never
// by browser; nothing is compiled twice, and a compiler's complaint names kernel, variant and line.

import { BitbrushError, show, throwIfAborted } from "./errors.js";
import { fetchJson, fetchText } from "./files.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./expressions.js").Expression} Expression
 * @typedef {import("./plan.js").Dispatch} Dispatch
 * @typedef {import("./plan.js").Plan} Plan
 * @typedef {{name: string, access: "read" | "read_write", dtype: string}} KernelBinding
 * @typedef {{kernel: string, options: Record<string, unknown>, variant: string, file: string, features: string[],
 *   limits: Record<string, number>, bindings: KernelBinding[], uniforms: {name: string, type: "u32" | "f32"}[],
 *   constants: string[], groups: [Expression, Expression, Expression]}} KernelEntry one line of kernels/index.json
 * @typedef {{entry: KernelEntry, pipeline: GPUComputePipeline, layout: GPUBindGroupLayout}} Compiled
 */

/**
 * @param {string} kernel
 * @param {Record<string, unknown>} options
 */
function optionKey(kernel, options) {
  const sorted = Object.keys(options).sort().map((name) => `${name}=${JSON.stringify(options[name])}`);
  return [kernel, ...sorted].join(" ");
}

/**
 * The last listed variant that the device can run; for the encoder none that computes in f16, because its
 * values pass what f16 holds.
 * @param {KernelEntry[]} variants baseline first
 * @param {{has: (feature: string) => boolean}} features
 * @param {Record<string, number>} limits
 * @param {{component: string, forceVariant?: string}} policy forceVariant: taken where a kernel has it,
 *   the baseline elsewhere
 * @returns {KernelEntry}
 */
export function chooseVariant(variants, features, limits, policy) {
  const possible = variants.filter((variant) =>
    variant.features.every((feature) => features.has(feature)) &&
    Object.entries(variant.limits).every(([name, needed]) => (limits[name] ?? 0) >= needed) &&
    !(policy.component === "encoder" && variant.features.includes("shader-f16")));
  if (policy.forceVariant) return possible.find((variant) => variant.variant === policy.forceVariant) ?? variants[0];
  const chosen = possible.at(-1);
  if (chosen) return chosen;
  const { kernel, limits: needed } = variants[0];
  throw new BitbrushError("limit-too-low", `kernel ${kernel}: its baseline needs ${show(needed)}, which this device lacks`);
}

/** Compiles and keeps pipelines for one device. */
export class Pipelines {
  /**
   * @param {DeviceContext} context
   * @param {KernelEntry[]} entries kernels/index.json
   * @param {(file: string) => Promise<string>} readShader
   * @param {string} [forceVariant]
   */
  constructor(context, entries, readShader, forceVariant) {
    this.context = context;
    this.readShader = readShader;
    this.forceVariant = forceVariant;
    /** @type {Map<string, KernelEntry[]>} */
    this.variants = new Map();
    for (const entry of entries) {
      const key = optionKey(entry.kernel, entry.options);
      this.variants.set(key, [...(this.variants.get(key) ?? []), entry]);
    }
    /** @type {Map<string, Promise<{module: GPUShaderModule, code: string}>>} */
    this.modules = new Map();
    /** @type {Map<string, GPUBindGroupLayout>} */
    this.layouts = new Map();
    /** @type {Map<string, Promise<Compiled>>} */
    this.compiled = new Map();
  }

  /**
   * The pipeline of one dispatch.
   * @param {Dispatch} dispatch
   * @param {string} component
   * @returns {Promise<Compiled>}
   */
  get(dispatch, component) {
    const variants = this.variants.get(optionKey(dispatch.kernel, dispatch.options));
    if (!variants) {
      return Promise.reject(new BitbrushError("bad-bundle",
        `kernel ${dispatch.kernel} with ${show(dispatch.options)}: expected in the kernel index, found none`));
    }
    const { device } = this.context;
    const limits = /** @type {Record<string, number>} */ (/** @type {unknown} */ (device.limits));
    const entry = chooseVariant(variants, device.features, limits, { component, forceVariant: this.forceVariant });
    const key = `${entry.file} ${JSON.stringify(Object.entries(dispatch.constants).sort())}`;
    let compiled = this.compiled.get(key);
    if (!compiled) {
      compiled = this.compile(entry, dispatch.constants);
      compiled.catch(() => this.compiled.delete(key));
      this.compiled.set(key, compiled);
    }
    return compiled;
  }

  /**
   * Compile all kernels of some plans, or of other dispatches with a component to choose variants for.
   * @param {Pick<Plan, "component" | "dispatches">[]} plans
   * @param {AbortSignal | undefined} signal checked after each; what the driver has begun it finishes
   * @param {(done: number, total: number) => void} onDone
   * @returns {Promise<void>}
   */
  async compilePlans(plans, signal, onDone) {
    const all = plans.flatMap((plan) => plan.dispatches.map((dispatch) => this.get(dispatch, plan.component)));
    const unique = [...new Set(all)];
    let done = 0;
    onDone(0, unique.length);
    await this.context.guard(Promise.all(unique.map(async (promise) => {
      await promise;
      throwIfAborted(signal);
      done += 1;
      onDone(done, unique.length);
    })));
  }

  /** @param {KernelEntry} entry */
  layoutOf(entry) {
    const key = entry.bindings.map((binding) => binding.access).join(",");
    let layout = this.layouts.get(key);
    if (!layout) {
      /** @type {GPUBindGroupLayoutEntry[]} */
      const entries = entry.bindings.map((binding, index) => ({
        binding: index,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: binding.access === "read" ? "read-only-storage" : "storage" },
      }));
      entries.push({ binding: entries.length, visibility: GPUShaderStage.COMPUTE, buffer: { type: "uniform" } });
      layout = this.context.device.createBindGroupLayout({ label: key, entries });
      this.layouts.set(key, layout);
    }
    return layout;
  }

  /** @param {KernelEntry} entry */
  shaderModule(entry) {
    let promise = this.modules.get(entry.file);
    if (!promise) {
      promise = this.readShader(entry.file).then((code) => ({
        code,
        module: this.context.device.createShaderModule({ label: entry.file, code }),
      }));
      promise.catch(() => this.modules.delete(entry.file));
      this.modules.set(entry.file, promise);
    }
    return promise;
  }

  /**
   * @param {KernelEntry} entry
   * @param {Record<string, number>} constants
   * @returns {Promise<Compiled>}
   */
  async compile(entry, constants) {
    const { device } = this.context;
    const { module, code } = await this.shaderModule(entry);
    const layout = this.layoutOf(entry);
    try {
      const pipeline = await device.createComputePipelineAsync({
        label: `${entry.kernel}.${entry.variant}`,
        layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
        compute: { module, entryPoint: "main", constants },
      });
      return { entry, pipeline, layout };
    } catch (error) {
      if (this.context.isLost) this.context.check();
      throw await compileError(entry, module, code, error);
    }
  }
}

/**
 * @param {KernelEntry} entry
 * @param {GPUShaderModule} module
 * @param {string} code
 * @param {unknown} cause
 */
async function compileError(entry, module, code, cause) {
  const info = await module.getCompilationInfo();
  const lines = code.split("\n");
  const complaints = info.messages
    .filter((message) => message.type === "error")
    .map((message) => {
      const source = lines[message.lineNum - 1]?.trim() ?? "";
      return `line ${message.lineNum}:${message.linePos}: ${message.message} in "${source}"`;
    });
  if (complaints.length === 0) complaints.push(cause instanceof Error ? cause.message : String(cause));
  const where = `kernel ${entry.kernel}, variant ${entry.variant}, ${entry.file}`;
  return new BitbrushError("shader-compile", `${where}: ${complaints.join("; ")}`, { cause });
}

/**
 * Pipelines from the site's kernel folder; nothing is compiled yet.
 * @param {DeviceContext} context
 * @param {string} indexUrl of kernels/index.json; shaders lie beside it
 * @param {string} [forceVariant]
 */
export async function loadPipelines(context, indexUrl, forceVariant) {
  const entries = await fetchJson(indexUrl);
  if (!Array.isArray(entries)) throw new BitbrushError("bad-bundle", `${indexUrl}: expected a list, found ${show(entries)}`);
  return new Pipelines(context, entries, (file) => fetchText(new URL(file, indexUrl).href), forceVariant);
}
