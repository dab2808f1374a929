// The page: one state, one run at a time. What the runtime does is in ../runtime, behind client.js.

import "./trusted.js";
import { createClient } from "../runtime/client.js";
import { chosenModel, chosenSize, randomSeed, readForm, setUpForm } from "./form.js";
import { budgetBytes, gpuBytes, withConverted } from "./memory.js";
import { showNotice } from "./notice.js";
import { announce, startProgress } from "./progress.js";
import { createResult } from "./result.js";
import { createSession } from "./session.js";
import { text } from "./strings.js";

const element = (id) => document.getElementById(id);
const modelsFolder = new URL("../../models/", import.meta.url).href;

/** @typedef {"checking" | "unsupported" | "ready" | "running"} State */

/** @type {State} */
let state = "checking";
/** @type {import("./form.js").Model[]} */
let models = [];
/** @type {AbortController | null} */
let controller = null;
let adapter = "";
/** Features that kernels may use here. @type {string[]} */
let offers = [];
const forceVariant = new URLSearchParams(location.search).get("variant") ?? undefined;
const session = createSession(() => createClient({ forceVariant }), modelsFolder, budgetBytes(location.search));
const result = createResult(element("result"));

/** @param {State} next */
function setState(next) {
  state = next;
  document.body.dataset.state = next;
  element("generate").setAttribute("aria-disabled", String(next !== "ready"));
  if (next !== "running" && document.activeElement === element("cancel")) element("generate").focus();
  element("cancel").hidden = next !== "running";
  if (models.length) showCost(chosenModel(models));
}

/** @param {import("./form.js").Model} model */
function showCost(model) {
  if (state === "checking") element("cost").textContent = text.checking;
  else if (state === "unsupported") element("cost").textContent = "";
  else {
    const memory = withConverted(model.memory, model.converted, offers);
    const needed = text.memory(gpuBytes(memory, ...chosenSize()), ...chosenSize());
    element("cost").textContent = session.has(model) ? text.loaded(model, needed) : text.cost(model, needed);
  }
}

/** @param {any} probed the runtime's answer @returns {string} the adapter's name */
function adapterName({ adapter: info }) {
  if (typeof info === "string") return info;
  const parts = [info?.description, info?.vendor, info?.architecture, info?.device];
  return [...new Set(parts.filter(Boolean))].join(" ") || "unnamed";
}

async function generate() {
  if (state !== "ready") return;
  const model = chosenModel(models);
  const request = readForm(model);
  if (!request) return;
  const started = performance.now();
  controller = new AbortController();
  const { signal } = controller;
  setState("running");
  result.begin();
  const progress = startProgress();
  try {
    const latents = new URLSearchParams(location.search).has("latents");
    const onProgress = (event) => signal.aborted || progress.update(event);
    const made = await session.run(model, request, { signal, latents, onProgress });
    const timings = progress.finish();
    const seconds = (performance.now() - started) / 1000;
    await result.show({ ...request, ...made, model: model.name, variant: model.variant, adapter, seconds, timings });
    element("kernels").textContent = text.kernels(made.kernels);
    announce(text.done(`${seconds.toFixed(1)} s`));
    element("seed").dataset.used = String(request.seed);
  } catch (error) {
    progress.finish();
    if (signal.aborted || error?.code === "aborted") {
      result.cancelled();
      announce(text.cancelled);
    } else {
      result.fail(error);
    }
  } finally {
    controller = null;
    setState("ready");
  }
}

function cancel() {
  if (!controller) return;
  element("phase").textContent = text.cancelling;
  controller.abort();
}

/** A seed that made a picture stays visible; unless it is kept, the next picture gets a new one. */
function refreshSeed() {
  const seed = element("seed");
  if (state === "ready" && !element("lock").checked && seed.dataset.used === seed.value) seed.value = String(randomSeed());
}

function listen() {
  element("form").addEventListener("submit", (event) => {
    event.preventDefault();
    refreshSeed();
    generate();
  });
  element("cancel").addEventListener("click", cancel);
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      element("form").requestSubmit();
    } else if (event.key === "Escape") {
      cancel();
    }
  });
  if (/Mac|iPhone|iPad/.test(navigator.userAgent)) element("modifier").textContent = "⌘";
}

async function start() {
  setState("checking");
  listen();
  try {
    const response = await fetch(new URL("index.json", modelsFolder));
    if (!response.ok) throw new Error(`expected models/index.json, found status ${response.status}`);
    models = await response.json();
  } catch {
    setState("unsupported");
    showNotice("no-models");
    return;
  }
  setUpForm(models, showCost);
  try {
    const probed = await session.probe();
    adapter = adapterName(probed);
    offers = probed.offers;
    element("adapter").textContent = text.adapter(adapter);
    setState("ready");
  } catch (error) {
    setState("unsupported");
    if (error?.code === "no-webgpu" || error?.code === "no-adapter") showNotice(error.code);
    else result.fail(error);
  }
}

start();
