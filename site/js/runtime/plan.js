// Parses and checks a plan: what the executor may rely on is checked here, once.

import { BitbrushError, show } from "./errors.js";

/**
 * @typedef {import("./expressions.js").Expression} Expression
 * @typedef {{name: string, role: "input" | "output" | "temporary", dtype: "f32" | "u32", elements: Expression,
 *   arena?: number, first?: number, last?: number}} PlanValue
 * @typedef {{kernel: string, options: Record<string, unknown>, constants: Record<string, number>,
 *   uniforms: Record<string, Expression>, bindings: Record<string, Binding>, source?: string,
 *   when?: Expression}} Dispatch
 * @typedef {number | string | Window | Rows} Binding a value's index, a tensor, or a part of one of these
 * @typedef {{value: number, first: Expression, elements: Expression}} Window
 * @typedef {{tensor: string, first: number, rows: number}} Rows
 * @typedef {{first: number, last: number, rows: Expression, band_rows: Expression}} Loop over bands of rows
 * @typedef {{format: number, component: string, symbols: string[], arenas: number, values: PlanValue[],
 *   loops: Loop[], dispatches: Dispatch[]}} Plan
 */

export const PLAN_FORMAT = 3;

/**
 * @param {boolean} condition
 * @param {string} where
 * @param {string} expected
 * @param {unknown} found
 */
function require(condition, where, expected, found) {
  if (!condition) throw new BitbrushError("bad-bundle", `${where}: expected ${expected}, found ${show(found)}`);
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, any>}
 */
export function isRecord(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * @param {unknown} format
 * @param {number} known
 * @param {string} where
 */
export function checkFormat(format, known, where) {
  if (format === known) return;
  const newer = typeof format === "number" && format > known;
  throw new BitbrushError(
    "bad-bundle",
    `${where}: expected format ${known}, found ${show(format)}${newer ? ", which is newer than this page" : ""}`,
  );
}

/**
 * A plan from parsed JSON.
 * @param {unknown} json
 * @param {string} where the plan's address, for messages
 * @returns {Plan}
 */
export function parsePlan(json, where) {
  require(isRecord(json), where, "a plan object", json);
  const plan = /** @type {Record<string, any>} */ (json);
  checkFormat(plan.format, PLAN_FORMAT, where);
  require(Array.isArray(plan.symbols), `${where}, symbols`, "a list of names", plan.symbols);
  require(Number.isInteger(plan.arenas) && plan.arenas >= 0 && plan.arenas <= 16, `${where}, arenas`,
    "a count from 0 to 16", plan.arenas);
  require(Array.isArray(plan.values), `${where}, values`, "a list", plan.values);
  require(Array.isArray(plan.dispatches) && plan.dispatches.length > 0, `${where}, dispatches`, "a filled list",
    plan.dispatches);
  require(Array.isArray(plan.loops), `${where}, loops`, "a list", plan.loops);
  plan.values.forEach((/** @type {unknown} */ value, /** @type {number} */ index) =>
    checkValue(value, /** @type {Plan} */ (plan), `${where}, value ${index}`));
  plan.dispatches.forEach((/** @type {unknown} */ dispatch, /** @type {number} */ index) =>
    checkDispatch(dispatch, index, /** @type {Plan} */ (plan), `${where}, dispatch ${index}`));
  plan.loops.forEach((/** @type {unknown} */ loop, /** @type {number} */ index) =>
    checkLoop(loop, index, /** @type {Plan} */ (plan), `${where}, loop ${index}`));
  return /** @type {Plan} */ (plan);
}

/**
 * @param {unknown} json
 * @param {number} index
 * @param {Plan} plan
 * @param {string} where
 */
function checkLoop(json, index, plan, where) {
  require(isRecord(json), where, "an object", json);
  const loop = /** @type {Loop} */ (json);
  const start = index > 0 ? plan.loops[index - 1].last + 1 : 0;
  const { first, last } = loop;
  const inOrder = Number.isInteger(first) && Number.isInteger(last) && start <= first && first <= last;
  require(inOrder && last < plan.dispatches.length, where,
    `dispatches from ${start} to ${plan.dispatches.length - 1}, after the loop before`, [first, last]);
  for (const key of /** @type {const} */ (["rows", "band_rows"])) {
    require(loop[key] !== undefined, `${where}, ${key}`, "an expression", loop[key]);
  }
  for (const dispatch of plan.dispatches.slice(first, last + 1)) {
    for (const target of Object.values(dispatch.bindings)) {
      const number = boundValue(target);
      const value = number === undefined ? undefined : plan.values[number];
      if (value?.role !== "temporary") continue;
      require(Number(value.first) <= first && last <= Number(value.last), where,
        `${value.name} alive from ${first} to ${last}`, [value.first, value.last]);
    }
  }
}

/**
 * @param {unknown} json
 * @param {Plan} plan
 * @param {string} where
 */
function checkValue(json, plan, where) {
  require(isRecord(json), where, "an object", json);
  const value = /** @type {PlanValue} */ (json);
  require(typeof value.name === "string", `${where}, name`, "a string", value.name);
  require(["input", "output", "temporary"].includes(value.role), `${where}, role`, "input, output or temporary",
    value.role);
  require(["f32", "u32"].includes(value.dtype), `${where}, dtype`, "f32 or u32", value.dtype);
  if (value.role !== "temporary") return;
  const { arena, first, last } = value;
  require(Number.isInteger(arena) && Number(arena) >= 0 && Number(arena) < plan.arenas, `${where}, arena`,
    `a number below ${plan.arenas}`, arena);
  const inOrder = Number.isInteger(first) && Number.isInteger(last) && 0 <= Number(first) && Number(first) <= Number(last);
  require(inOrder && Number(last) < plan.dispatches.length, `${where}, life`,
    `first <= last < ${plan.dispatches.length}`, [first, last]);
}

/**
 * @param {unknown} json
 * @param {number} index
 * @param {Plan} plan
 * @param {string} where
 */
function checkDispatch(json, index, plan, where) {
  require(isRecord(json), where, "an object", json);
  const dispatch = /** @type {Dispatch} */ (json);
  require(typeof dispatch.kernel === "string", `${where}, kernel`, "a name", dispatch.kernel);
  for (const key of /** @type {const} */ (["options", "constants", "uniforms", "bindings"])) {
    require(isRecord(dispatch[key]), `${where}, ${key}`, "an object", dispatch[key]);
  }
  for (const [name, constant] of Object.entries(dispatch.constants)) {
    require(Number.isFinite(constant), `${where}, constant ${name}`, "a number", constant);
  }
  for (const [name, target] of Object.entries(dispatch.bindings)) {
    const here = `${where}, binding ${name}`;
    // A tensor; its name is checked when weights are known.
    if (typeof target === "string") continue;
    if (isRecord(target) && "tensor" in target) {
      const { tensor, first, rows } = target;
      const whole = Number.isInteger(first) && first >= 0 && Number.isInteger(rows) && rows > 0;
      require(typeof tensor === "string" && whole, here, "a tensor, its first row and a count of rows", target);
      continue;
    }
    const number = isRecord(target) ? target.value : target;
    require(Number.isInteger(number) && number >= 0 && number < plan.values.length, here,
      `a tensor's name, or an index below ${plan.values.length} or a window of it`, target);
    if (isRecord(target)) {
      const whole = target.first !== undefined && target.elements !== undefined;
      require(whole && Object.keys(target).length === 3, here, "a window {value, first, elements}", target);
    }
    const value = plan.values[number];
    if (value.role !== "temporary") continue;
    require(Number(value.first) <= index && index <= Number(value.last), here,
      `${value.name} alive at dispatch ${index}`, [value.first, value.last]);
  }
}

/**
 * Index of the value that a binding names, whole or in part; undefined for a tensor.
 * @param {Binding} target
 */
function boundValue(target) {
  if (typeof target === "number") return target;
  return typeof target === "object" && "value" in target ? target.value : undefined;
}

/**
 * Names of the tensors that a plan binds.
 * @param {Plan} plan
 * @returns {Set<string>}
 */
export function boundTensors(plan) {
  const targets = plan.dispatches.flatMap((dispatch) => Object.values(dispatch.bindings));
  return new Set(targets.flatMap((target) => {
    if (typeof target === "string") return [target];
    return typeof target === "object" && "tensor" in target ? [target.tensor] : [];
  }));
}
