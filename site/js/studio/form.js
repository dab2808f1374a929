// The form: fills it from the chosen model, reads it, and explains by the field what cannot be drawn.

import { MAX_SEED, MAX_STEPS } from "../runtime/request.js";
import { examples, fields, formatBytes } from "./strings.js";

const element = (id) => document.getElementById(id);

/**
 * @typedef {{multiple: number, minimum: number, maximum: number, default: number[], presets: number[][]}} Sizes
 * @typedef {{id: string, name: string, variant: string, manifest: string, bytes: number, other_bytes: number,
 *            steps: number, sizes: Sizes, memory: import("./memory.js").Memory,
 *            converted: import("./memory.js").Converted}} Model an entry of models/index.json
 * @typedef {{prompt: string, width: number, height: number, steps: number, seed: number}} Request
 */

/** @returns {number} a whole number from 0 to 2^32 - 1 */
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/**
 * @param {Model[]} models at least one
 * @param {(model: Model) => void} onChange called with the chosen model, at once and after changes of it or the size
 */
export function setUpForm(models, onChange) {
  element("model").replaceChildren(...models.map((model) => {
    const label = `${model.name}, ${model.variant} (${formatBytes(model.bytes)})`;
    return new Option(label, model.id);
  }));
  let shown = "";
  const choose = () => {
    const model = chosenModel(models);
    const sizes = JSON.stringify(model.sizes);
    if (sizes !== shown) fillSizes(model.sizes);
    if (!shown) Object.assign(element("steps"), { value: String(model.steps), max: MAX_STEPS });
    shown = sizes;
    onChange(model);
  };
  element("model").addEventListener("change", choose);
  const resized = () => {
    markPreset();
    onChange(chosenModel(models));
  };
  element("swap").addEventListener("click", () => {
    setSize(Number(element("height").value), Number(element("width").value));
    resized();
  });
  for (const id of ["width", "height"]) element(id).addEventListener("input", resized);
  element("presets").addEventListener("change", resized); // heard after the button has set the size
  element("dice").addEventListener("click", () => { element("seed").value = String(randomSeed()); });
  let example = 0;
  element("example").addEventListener("click", () => {
    element("prompt").value = examples[example++ % examples.length];
    element("prompt").focus();
  });
  element("seed").value = String(randomSeed());
  choose();
}

/** @param {Model[]} models @returns {Model} the one that the form names */
export const chosenModel = (models) => models.find((model) => model.id === element("model").value) ?? models[0];

/** @param {Sizes} sizes */
function fillSizes(sizes) {
  for (const id of ["width", "height"]) {
    Object.assign(element(id), { min: sizes.minimum, max: sizes.maximum, step: sizes.multiple });
  }
  element("presets").replaceChildren(...sizes.presets.map(([width, height]) => presetButton(width, height)));
  setSize(...sizes.default);
}

/** A radio button that looks like the shape it stands for. */
function presetButton(width, height) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "preset", value: `${width}x${height}` });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const scale = 18 / Math.max(width, height);
  const box = { width: width * scale, height: height * scale, x: 12 - width * scale / 2, y: 12 - height * scale / 2, rx: 2 };
  for (const [name, value] of Object.entries(box)) rect.setAttribute(name, String(value));
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.append(rect);
  const span = document.createElement("span");
  span.append(svg, `${width} × ${height}`);
  label.className = "preset";
  label.append(input, span);
  input.addEventListener("change", () => setSize(width, height));
  return label;
}

function setSize(width, height) {
  element("width").value = String(width);
  element("height").value = String(height);
  markPreset();
}

/** Checks the preset that equals the numbers, if there is one. */
function markPreset() {
  const size = `${element("width").value}x${element("height").value}`;
  for (const input of document.querySelectorAll("#presets input")) input.checked = input.value === size;
}

/** @returns {number} the whole number that a field holds; NaN for anything else */
function whole(id) {
  const value = element(id).value.trim();
  return /^\d{1,16}$/.test(value) ? Number(value) : NaN;
}

/** @returns {number[]} width and height in pixels, as far as the form holds numbers */
export const chosenSize = () => [whole("width"), whole("height")];

/** Shows or clears the message under one or more fields. */
function report(id, inputs, message) {
  element(id).textContent = message;
  element(id).hidden = !message;
  for (const [input, bad] of inputs) {
    if (bad) element(input).setAttribute("aria-invalid", "true");
    else element(input).removeAttribute("aria-invalid");
  }
}

/**
 * Reads the form; an unlocked seed is replaced by a new one after the first picture.
 *
 * @param {Model} model
 * @returns {Request | null} null if a field cannot be used: its message is shown and it has the focus
 */
export function readForm(model) {
  const { sizes } = model;
  const sizeMessage = (name, id) => {
    const value = whole(id);
    if (value % sizes.multiple === 0 && value >= sizes.minimum && value <= sizes.maximum) return "";
    const rounded = Math.round((Number.isNaN(value) ? sizes.default[0] : value) / sizes.multiple) * sizes.multiple;
    const nearest = Math.min(Math.max(rounded, sizes.minimum), sizes.maximum);
    return fields.size(name, element(id).value, sizes, nearest);
  };
  const messages = [sizeMessage("Width", "width"), sizeMessage("Height", "height")];
  report("size-error", [["width", messages[0]], ["height", messages[1]]], messages.filter(Boolean).join(" "));

  const steps = whole("steps");
  const stepsBad = !(steps >= 1 && steps <= MAX_STEPS);
  report("steps-error", [["steps", stepsBad]], stepsBad ? fields.steps(element("steps").value, MAX_STEPS) : "");

  if (!element("seed").value.trim()) element("seed").value = String(randomSeed());
  const seed = whole("seed");
  const seedBad = !(seed <= MAX_SEED);
  report("seed-error", [["seed", seedBad]], seedBad ? fields.seed(element("seed").value, MAX_SEED) : "");

  const invalid = document.querySelector("#form [aria-invalid]");
  if (invalid) {
    invalid.focus();
    return null;
  }
  return { prompt: element("prompt").value, width: whole("width"), height: whole("height"), steps, seed };
}
