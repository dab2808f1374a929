// Kernels by name and options -> compute pipelines. The variant is chosen by what the device has, never
// by browser; nothing is compiled twice, and a compiler's complaint names kernel, variant and line.

import { conversionDispatch } from "./conversions.js";
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
 *   constants: string[], groups: [Expression, Expression, Expression], default?: boolean, software?: boolean,
 *   error?: number | null,
 *   matrix?: [string, string, number, number, number] | null, converts?: Record<string, string>,
 *   multiples?: Record<string, number>, fixed?: Record<string, number>, language_features?: string[]}} KernelEntry
 *   one line of kernels/index.json. converts: operand types by binding (conversions.js); multiples, fixed: what constants
 *   must be multiples of, or be; default: whether it may be chosen without being asked for; software: whether it takes
 *   the baseline's place where a CPU computes; error: its greatest
 *   relative error, null where it computes as exactly as the baseline
 * @typedef {{features: {has: (feature: string) => boolean}, limits: Record<string, number>,
 *   matrices?: import("./device.js").MatrixConfig[], language?: {has: (feature: string) => boolean}}} Offer what a
 *   device and the browser's WGSL have
 * @typedef {{entry: KernelEntry, pipeline: GPUComputePipeline, layout: GPUBindGroupLayout,
 *   conversions: Record<string, Compiled>}} Compiled conversions: kernels that convert operands, by binding
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
 * Dispatches with the same key run the same variant. Products of other sizes fill a GPU otherwise, so these count.
 * @param {Pick<Dispatch, "kernel" | "options" | "constants">} dispatch
 * @param {string} component
 */
export function choiceKey({ kernel, options, constants: { N, K } }, component) {
  return `${component} ${optionKey(kernel, options)}${N && K ? ` ${N}x${K}` : ""}`;
}

/**
 * The variants that a device can run and a component may use: for the encoder none that rounds operands to f16 or
 * int8, because its values pass what those hold.
 * @param {KernelEntry[]} variants baseline first
 * @param {Offer} offer
 * @param {string} component
 */
export function possibleVariants(variants, { features, limits, matrices = [], language = new Set() }, component) {
  return variants.filter((variant) =>
    variant.features.every((feature) => features.has(feature)) &&
    (variant.language_features ?? []).every((feature) => language.has(feature)) &&
    Object.entries(variant.limits).every(([name, needed]) => (limits[name] ?? 0) >= needed) &&
    (!variant.matrix || matrices.some((config) => String(variant.matrix) ===
      String([config.componentType, config.resultComponentType, config.M, config.N, config.K]))) &&
    !(component === "encoder" && roundsOperands(variant)) &&
    // Its few products are not worth the memory.
    !(component === "decoder" && converts(variant)));
}

/** @param {KernelEntry} variant */
function converts(variant) {
  return Object.keys(variant.converts ?? {}).length > 0;
}

/** @param {KernelEntry} variant */
function roundsOperands(variant) {
  return variant.features.includes("shader-f16") || converts(variant);
}

/**
 * The variant to compile: the one asked for; else of those found right on this device (choice.js) the first that can
 * run, else the baseline; where nothing was chosen, the last that may run without being asked for and converts nothing.
 * @param {KernelEntry[]} variants baseline first
 * @param {Offer} offer
 * @param {{component: string, forceVariant?: string, chosen?: string[]}} policy forceVariant: the name of the variant taken
 *   where a kernel has it, the baseline elsewhere; of several names with commas the first it has; chosen: best first
 * @returns {KernelEntry}
 */
export function chooseVariant(variants, offer, { component, forceVariant, chosen }) {
  const possible = possibleVariants(variants, offer, component);
  const [best] = (forceVariant?.split(",") ?? chosen ?? []).flatMap((name) =>
    possible.filter((variant) => variant.variant === name));
  if (forceVariant) return best ?? variants[0];
  const usual = possible.filter((variant) => variant.default !== false && !converts(variant));
  const found = best ?? (chosen ? possible[0] : usual.at(-1));
  if (found) return found;
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
    /** Names of variants, best first, by `choiceKey`, made on this device. @type {Map<string, string[]>} */
    this.choice = new Map();
    /** Whether a choice was made: what it does not name takes the baseline. */
    this.isChosen = false;
    const limits = /** @type {Record<string, number>} */ (/** @type {unknown} */ (context.device.limits));
    const matrices = context.facts.subgroupMatrixConfigs;
    /** @type {Offer} */
    this.offer = { features: context.features, limits, matrices, language: navigator.gpu.wgslLanguageFeatures };
    /** @type {Map<string, Promise<{module: GPUShaderModule, code: string}>>} */
    this.modules = new Map();
    /** @type {Map<string, GPUBindGroupLayout>} */
    this.layouts = new Map();
    /** @type {Map<string, Promise<Compiled>>} */
    this.compiled = new Map();
  }

  /**
   * All variants of a dispatch's kernel that serve its constants, baseline first.
   * @param {Pick<Dispatch, "kernel" | "options" | "constants">} dispatch
   */
  variantsOf({ kernel, options, constants }) {
    const variants = this.variants.get(optionKey(kernel, options));
    if (variants) {
      return variants.filter(({ multiples = {}, fixed = {} }) =>
        Object.entries(multiples).every(([name, multiple]) => constants[name] % multiple === 0) &&
        Object.entries(fixed).every(([name, value]) => constants[name] === value));
    }
    throw new BitbrushError("bad-bundle",
      `kernel ${kernel} with ${show(options)}: expected in the kernel index, found none`);
  }

  /**
   * The variant of one dispatch.
   * @param {Dispatch} dispatch
   * @param {string} component
   * @param {string} [variant] instead of the one that was chosen or forced, where the kernel has it
   */
  entryOf(dispatch, component, variant = this.forceVariant) {
    // What was not checked does not run beside what was.
    const unknown = this.isChosen ? [] : undefined;
    const chosen = this.choice.get(choiceKey(dispatch, component)) ?? unknown;
    return chooseVariant(this.variantsOf(dispatch), this.offer, { component, forceVariant: variant, chosen });
  }

  /**
   * The pipeline of one dispatch.
   * @param {Dispatch} dispatch
   * @param {string} component
   * @param {string} [variant] instead of the one that was chosen or forced, where the kernel has it
   * @returns {Promise<Compiled>}
   */
  get(dispatch, component, variant = this.forceVariant) {
    const entry = this.entryOf(dispatch, component, variant);
    const key = `${entry.file} ${JSON.stringify(Object.entries(dispatch.constants).sort())}`;
    let compiled = this.compiled.get(key);
    if (!compiled) {
      compiled = this.compileWithConversions(entry, dispatch.constants, component);
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
   * @param {string} component
   * @returns {Promise<Compiled>}
   */
  async compileWithConversions(entry, constants, component) {
    const kinds = Object.entries(entry.converts ?? {});
    const [compiled, ...conversions] = await Promise.all([
      this.compile(entry, constants),
      ...kinds.map(([binding, kind]) => this.get(conversionDispatch(binding, kind, constants), component)),
    ]);
    return { ...compiled, conversions: Object.fromEntries(kinds.map(([binding], at) => [binding, conversions[at]])) };
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
      return { entry, pipeline, layout, conversions: {} };
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
