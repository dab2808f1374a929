// Parses and checks a model's manifest, and answers where its files are.

import { BitbrushError, show } from "./errors.js";
import { checkFormat, isRecord } from "./plan.js";

/**
 * @typedef {{shard: number, offset: number, bytes: number}} Part bytes `offset` .. `offset + bytes` of a shard
 * @typedef {{dtype: "U32" | "F16" | "F32" | "U8", shape: number[], parts: Part[],
 *   expands_to?: {name: string, shape: [number, number]}, copied?: boolean}} Tensor
 *   expands_to: of trits (U8), the codes on the GPU; copied: copied from, never bound (set by parseManifest)
 * @typedef {{graph: string, plan: string, tensors: Record<string, Tensor>}} Component
 * @typedef {{file: string, bytes: number, sha256: string}} Shard
 * @typedef {{tokenizer: string, prefix: string, suffix: string, length: number, pad_id: number, layers: number[],
 *   features: number, rotary: {head_size: number, theta: number}}} TextSettings
 * @typedef {{multiple: number, minimum: number, maximum: number, default: [number, number],
 *   presets: [number, number][]}} Sizes
 * @typedef {"encoder" | "modulation" | "denoiser" | "decoder"} ComponentName
 * @typedef {{format: number, name: string, variant: string, components: Record<ComponentName, Component>,
 *   shards: Shard[], shards_url?: string, text: TextSettings, latents: {channels: number, downscale: number},
 *   denoiser: {rotary: {axes: number[], theta: number}, timestep_features: number},
 *   modulation: {sigmas: number[], table: string, width: number},
 *   schedule: Record<string, unknown> & {steps: number}, sizes: Sizes}} Manifest
 *   modulation.sigmas: of the rows of the denoiser's tensor modulation.table, f32[sigmas, width]
 */

export const MANIFEST_FORMAT = 2;
/** What a first visit fetches; `modulation` comes when a request needs it. @type {ComponentName[]} */
export const COMPONENTS = ["encoder", "denoiser", "decoder"];
/** @type {ComponentName[]} */
export const ALL_COMPONENTS = [...COMPONENTS, "modulation"];
/** Trits come in units of 16 bytes, each of which becomes 5 words of codes. */
export const TRIT_UNIT = { bytes: 16, words: 5 };

/** @type {(value: unknown) => boolean} */
const isCount = (value) => Number.isSafeInteger(value) && Number(value) > 0;
/** @type {(value: unknown) => boolean} */
const isString = (value) => typeof value === "string";
/** @type {(value: unknown) => boolean} */
const isSize = (value) => Array.isArray(value) && value.length === 2 && value.every(isCount);

/** Every key that the runtime reads: path, test, what it must be. @type {[string, (value: any) => boolean, string][]} */
const FIELDS = [
  ["name", isString, "a string"],
  ["variant", isString, "a string"],
  ["shards", (value) => Array.isArray(value), "a list"],
  ["text.tokenizer", isString, "a folder"],
  ["text.prefix", isString, "a string"],
  ["text.suffix", isString, "a string"],
  ["text.length", isCount, "a positive number"],
  ["text.pad_id", (value) => Number.isSafeInteger(value) && value >= 0, "a token id"],
  ["text.features", isCount, "a positive number"],
  ["text.rotary.head_size", isCount, "a positive number"],
  ["text.rotary.theta", (value) => value > 0, "a positive number"],
  ["latents.channels", isCount, "a positive number"],
  ["latents.downscale", isCount, "a positive number"],
  ["denoiser.rotary.axes", (value) => Array.isArray(value) && value.length === 4 && value.every(isCount), "four numbers"],
  ["denoiser.rotary.theta", (value) => value > 0, "a positive number"],
  ["denoiser.timestep_features", isCount, "a positive number"],
  ["modulation.sigmas", (value) => Array.isArray(value) && value.every(Number.isFinite), "a list of numbers"],
  ["modulation.table", isString, "a tensor's name"],
  ["modulation.width", isCount, "a positive number"],
  ["schedule.steps", isCount, "a positive number"],
  ["sizes.multiple", isCount, "a positive number"],
  ["sizes.minimum", isCount, "a positive number"],
  ["sizes.maximum", isCount, "a positive number"],
  ["sizes.default", isSize, "[width, height]"],
  ["sizes.presets", (value) => Array.isArray(value) && value.every(isSize), "a list of [width, height]"],
];

/**
 * A manifest from parsed JSON.
 * @param {unknown} json
 * @param {string} where its address, for messages
 * @returns {Manifest}
 */
export function parseManifest(json, where) {
  /** @type {(path: string, expected: string, found: unknown) => BitbrushError} */
  const bad = (path, expected, found) =>
    new BitbrushError("bad-bundle", `${where}, ${path}: expected ${expected}, found ${show(found)}`);
  if (!isRecord(json)) throw new BitbrushError("bad-bundle", `${where}: expected a manifest, found ${show(json)}`);
  checkFormat(json.format, MANIFEST_FORMAT, where);
  for (const [path, test, expected] of FIELDS) {
    const value = path.split(".").reduce((/** @type {any} */ at, key) => at?.[key], json);
    if (!test(value)) throw bad(path, expected, value);
  }
  const manifest = /** @type {Manifest} */ (/** @type {unknown} */ (json));
  manifest.shards.forEach((shard, index) => {
    const good = isRecord(shard) && isString(shard.file) && isCount(shard.bytes) && /^[0-9a-f]{64}$/.test(shard.sha256);
    if (!good) throw bad(`shards.${index}`, "file, bytes and sha256", shard);
  });
  for (const name of ALL_COMPONENTS) {
    const component = manifest.components?.[name];
    if (!isRecord(component) || !isString(component.plan) || !isRecord(component.tensors)) {
      throw bad(`components.${name}`, "a plan and tensors", component);
    }
    for (const [tensorName, tensor] of Object.entries(component.tensors)) {
      checkTensor(tensor, manifest.shards, (expected, found) => bad(`tensor ${tensorName}`, expected, found));
    }
    const residents = residentTensors(component).map((tensor) => tensor.name);
    const twice = residents.find((tensorName, index) => residents.indexOf(tensorName) !== index);
    if (twice) throw bad(`components.${name}`, "each tensor once", twice);
  }
  const { sigmas, table, width } = manifest.modulation;
  const found = manifest.components.denoiser.tensors[table];
  if (found?.dtype !== "F32" || String(found.shape) !== String([sigmas.length, width])) {
    const expected = `F32 [${sigmas.length},${width}] in the denoiser`;
    throw bad("modulation.table", expected, found && [found.dtype, found.shape]);
  }
  found.copied = true;
  return manifest;
}

/**
 * @param {Tensor} tensor
 * @param {Shard[]} shards
 * @param {(expected: string, found: unknown) => BitbrushError} bad
 */
function checkTensor(tensor, shards, bad) {
  const itemBytes = { U32: 4, F32: 4, F16: 2, U8: 1 }[tensor?.dtype];
  if (!itemBytes) throw bad("dtype U32, F16, F32 or U8", tensor?.dtype);
  if (!Array.isArray(tensor.shape) || !tensor.shape.every(isCount)) throw bad("a shape", tensor.shape);
  if (!Array.isArray(tensor.parts)) throw bad("parts", tensor.parts);
  for (const part of tensor.parts) {
    const shard = shards[part?.shard];
    if (!shard) throw bad(`a shard below ${shards.length}`, part);
    const fits = Number.isSafeInteger(part.offset) && part.offset >= 0 && isCount(part.bytes);
    if (!fits || part.offset + part.bytes > shard.bytes) throw bad(`bytes inside shard ${part.shard}`, part);
  }
  const expected = tensor.shape.reduce((product, size) => product * size, itemBytes);
  const found = tensorBytes(tensor);
  if (expected !== found) throw bad(`${expected} bytes for ${tensor.dtype} [${tensor.shape}]`, found);
  if (tensor.dtype === "U8" || tensor.expands_to !== undefined) checkTrits(tensor, bad);
}

/**
 * Trits, and they alone, are U8 and say which codes the GPU gets.
 * @param {Tensor} tensor
 * @param {(expected: string, found: unknown) => BitbrushError} bad
 */
function checkTrits({ dtype, shape, parts, expands_to: codes }, bad) {
  if (dtype !== "U8" || !isRecord(codes) || !isString(codes.name) || !isSize(codes.shape)) {
    throw bad("expands_to with a name and two sizes for dtype U8 and no other", codes ?? dtype);
  }
  const units = Math.ceil((codes.shape[0] * codes.shape[1]) / TRIT_UNIT.words);
  if (shape.length !== 2 || shape[0] !== units || shape[1] !== TRIT_UNIT.bytes) {
    throw bad(`shape [${units},${TRIT_UNIT.bytes}] for codes [${codes.shape}]`, shape);
  }
  const torn = parts.find((part) => part.bytes % TRIT_UNIT.bytes !== 0);
  if (torn) throw bad(`parts of whole units of ${TRIT_UNIT.bytes} bytes`, torn);
}

/**
 * Bytes of a tensor in its shards.
 * @param {Tensor} tensor
 */
export function tensorBytes(tensor) {
  return tensor.parts.reduce((sum, part) => sum + part.bytes, 0);
}

/**
 * What the GPU gets of a component, under the names that plans use: tensors as stored, trits as codes.
 * @param {Component} component
 * @returns {{name: string, bytes: number, stored: Tensor}[]}
 */
export function residentTensors(component) {
  return Object.entries(component.tensors).map(([name, stored]) => {
    const codes = stored.expands_to;
    return codes ? { name: codes.name, bytes: 4 * codes.shape[0] * codes.shape[1], stored }
      : { name, bytes: tensorBytes(stored), stored };
  });
}

/**
 * Indices of the shards that hold tensors of a component, in order.
 * @param {Component} component
 */
export function shardsOf(component) {
  const indices = Object.values(component.tensors).flatMap((tensor) => tensor.parts.map((part) => part.shard));
  return [...new Set(indices)].sort((a, b) => a - b);
}

/**
 * Bytes of all shards that the components named need, each counted once.
 * @param {Manifest} manifest
 * @param {ComponentName[]} names
 */
export function downloadBytes(manifest, names) {
  const indices = new Set(names.flatMap((name) => shardsOf(manifest.components[name])));
  return [...indices].reduce((sum, index) => sum + manifest.shards[index].bytes, 0);
}
