// Every sentence that the scripts show. Fixed labels stand in the page itself.

const megabytes = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** @param {number} bytes @returns {string} megabytes (10^6) with one decimal */
export const formatBytes = (bytes) => `${megabytes.format(bytes / 1e6)} MB`;

const rounded = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

/** @param {number} bytes @returns {string} megabytes or gigabytes with two digits that count */
export const formatRoughly = (bytes) => (bytes < 0.995e9 ? `${rounded.format(bytes / 1e6)} MB` : `${rounded.format(bytes / 1e9)} GB`);

/** @param {number} milliseconds @returns {string} seconds with one decimal */
export const formatSeconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;

export const examples = [
  "a red apple on a blue background",
  "three strawberries on a white background",
  "火箭，蓝色背景",
  "a castle and a rainbow on a pink background",
];

/** Phases of the runtime's progress events, in the order in which they happen. */
export const phases = {
  download: "Downloading the model",
  upload: "Moving it to the graphics card",
  compile: "Preparing the shaders",
  encode: "Reading your prompt",
  denoise: "Drawing",
  decode: "Developing the picture",
};

/** @param {{steps: number, other_bytes: number}} model */
const others = ({ steps, other_bytes: bytes }) =>
  `Other sizes than those offered, or more or fewer steps than ${steps}, download ${formatBytes(bytes)} more, once.`;

export const text = {
  title: "Bitbrush – pictures from words, made on your own GPU",
  checking: "Checking your graphics card…",
  cost: (model, memory) => `The first picture downloads ${formatBytes(model.bytes)}, once. ${memory}` +
    `Nothing is fetched before you press Generate. ${others(model)}`,
  loaded: (model, memory) => `The model is loaded: the next picture downloads nothing. ${memory}${others(model)}`,
  memory: (bytes, width, height) =>
    (bytes > 0 ? `It needs about ${formatRoughly(bytes)} of GPU memory at ${width}\u00a0×\u00a0${height}. ` : ""),
  adapter: (name) => `Graphics adapter: ${name}`,
  kernels: (names) => `Kernels chosen on it: ${names}`,
  started: "Started.",
  cancelling: "Cancelling…",
  cancelled: "Cancelled. Your settings are kept.",
  done: (seconds) => `The picture is ready after ${seconds}.`,
  amount: ({ done, total, unit, fraction = done / total }) => {
    if (unit === "bytes") return `${megabytes.format(done / 1e6)} of ${formatBytes(total)}`;
    if (unit === "parts") return `${Math.floor(100 * fraction)} %`;
    return `${done} of ${total} ${unit}`;
  },
  alt: (prompt) => `Generated image: ${prompt || "no prompt"}`,
  facts: (f) => `Seed ${f.seed} · ${f.width} × ${f.height} · ${f.steps} ${f.steps === 1 ? "step" : "steps"} · ` +
    `${f.model}, ${f.variant} · ${formatSeconds(f.seconds * 1000)}`,
  details: "Technical details",
  saveFailed: "The file could not be written",
};

export const fields = {
  size: (name, value, sizes, nearest) =>
    `${name} must be a multiple of ${sizes.multiple} from ${sizes.minimum} to ${sizes.maximum}, ` +
    `not ${value || "empty"}. The nearest is ${nearest}.`,
  steps: (value, maximum) => `Steps must be a whole number from 1 to ${maximum}, not ${value || "empty"}.`,
  seed: (value, maximum) => `Seed must be a whole number from 0 to ${maximum}, or empty for a random one, not ${value}.`,
};

const reload = "Reload the page and try again.";

/** What happened and what to do, by the runtime's error code. */
export const errors = {
  "limit-too-low": ["This picture is too large for your graphics card", "Try a smaller size. Your prompt is kept."],
  "network": ["The model could not be downloaded", "Check your connection, then press Generate again. Your prompt is kept."],
  "hash-mismatch": ["A downloaded file was damaged", "It was not used. Press Generate to fetch it again; if this repeats, the site itself is damaged."],
  "bad-bundle": ["The model on this site cannot be read", `The site may be half updated. ${reload}`],
  "bad-request": ["These settings cannot be drawn", "Check size, steps and seed. Your prompt is kept."],
  "device-lost": ["The graphics card stopped working on this picture", "Your prompt is kept. Press Generate to start it again, or try a smaller size."],
  "out-of-memory": ["The graphics card ran out of memory", "Your prompt is kept. Try a smaller size, or close other tabs."],
  "shader-compile": ["Your graphics card's driver refused a shader", "Update the browser and the graphics driver. The details below help in a bug report."],
  "bad-numbers": ["The picture came out broken, so it is not shown", "The graphics card computed values that are no numbers. Try another seed or update the graphics driver."],
  "unknown": ["Something went wrong", `Your prompt is kept. ${reload}`],
};

/** Shown in place of an error when pictures cannot be made here at all. */
export const notices = {
  "no-webgpu": "This browser has no WebGPU",
  "no-adapter": "WebGPU is here, but it found no graphics card",
  "insecure": "This page was opened over an insecure connection",
  "no-models": "The list of models could not be loaded",
  text: "Bitbrush computes pictures on your own graphics card, and browsers offer that through WebGPU. Without it this page cannot draw. What helps:",
  insecure_text: "Browsers offer WebGPU only to pages from https or from this machine.",
  no_models_text: "The page itself arrived, its list of models did not. Check your connection and reload the page.",
};

export const advice = {
  insecure: ["Open the page by https, or by http://localhost if it runs on this machine."],
  firefox: ["Update Firefox: WebGPU is on since version 141 on Windows and 145 on Macs with Apple silicon.", "On Linux and Android use Chrome, Chromium or Edge."],
  safari: ["Update to macOS 26 or later, where Safari has WebGPU.", "Or use Chrome or Edge."],
  ios: ["Update to iOS or iPadOS 26 or later: every browser there depends on the system for WebGPU."],
  chromium: ["Update the browser: WebGPU is on since version 113 on Windows, macOS and ChromeOS and 121 on Android.", "Check that graphics acceleration is on: Settings, System."],
  other: ["Use a current Chrome, Edge, Firefox or Safari."],
  adapter: ["Turn on graphics acceleration in the browser's settings (System), then restart the browser.", "Update the graphics driver.", "Remote desktops and virtual machines often have no graphics card to offer."],
};
