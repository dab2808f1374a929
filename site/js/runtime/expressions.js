// Size expressions of plans and workgroup counts: a number, a symbol, or [op, a, b, ...] folded from the
// left. They are data: nothing is parsed from text, so a strict content-security policy holds.

import { BitbrushError, show } from "./errors.js";

/**
 * @typedef {number | string | [string, ...unknown[]]} Expression
 * @typedef {Record<string, number>} Symbols
 */

/**
 * @param {string} op
 * @param {number} a
 * @param {number} b
 */
function requireDivisible(op, a, b) {
  if (!Number.isInteger(a) || !Number.isInteger(b)) throw bad(`operator ${op} takes integers, got ${a} and ${b}`);
  if (b <= 0) throw bad(`operator ${op} needs a positive divisor, got ${b}`);
}

/** @type {Record<string, (a: number, b: number) => number>} */
const OPERATORS = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  floor_div: (a, b) => {
    requireDivisible("floor_div", a, b);
    return Math.floor(a / b);
  },
  ceil_div: (a, b) => {
    requireDivisible("ceil_div", a, b);
    return Math.ceil(a / b);
  },
  min: Math.min,
  max: Math.max,
};

/** @param {string} message */
function bad(message) {
  return new BitbrushError("bad-bundle", `expression: ${message}`);
}

/**
 * The value of an expression.
 * @param {unknown} expression
 * @param {Symbols} symbols value of each name
 * @returns {number}
 */
export function evaluate(expression, symbols) {
  if (typeof expression === "number" && Number.isFinite(expression)) return expression;
  if (typeof expression === "string") {
    if (!Object.hasOwn(symbols, expression)) {
      throw bad(`unknown symbol ${show(expression)}; known: ${Object.keys(symbols).sort().join(", ")}`);
    }
    return symbols[expression];
  }
  if (!Array.isArray(expression) || expression.length === 0) {
    throw bad(`expected a number, a symbol or [op, a, b, ...], found ${show(expression)}`);
  }
  const [op, ...operands] = expression;
  if (typeof op !== "string" || !Object.hasOwn(OPERATORS, op)) {
    throw bad(`unknown operator ${show(op)}; known: ${Object.keys(OPERATORS).join(", ")}`);
  }
  if (operands.length < 2) throw bad(`operator ${op} needs two or more operands, found ${show(expression)}`);
  return operands.map((operand) => evaluate(operand, symbols)).reduce((a, b) => OPERATORS[op](a, b));
}

/**
 * The value of an expression that must be a whole number from `minimum` up.
 * @param {unknown} expression
 * @param {Symbols} symbols
 * @param {string} what for the message
 * @param {number} [minimum]
 */
export function evaluateCount(expression, symbols, what, minimum = 0) {
  const value = evaluate(expression, symbols);
  if (!Number.isSafeInteger(value) || value < minimum) {
    throw bad(`${what}: expected a whole number from ${minimum}, found ${value} for ${show(expression)}`);
  }
  return value;
}
