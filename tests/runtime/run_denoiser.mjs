// One run of a site's denoiser by the runtime itself, in Node.
// Usage: node run_denoiser.mjs PATH_OF_THE_WEBGPU_PACKAGE REQUEST.json
//
// The request: {manifest, kernels, folder, baseline, rows, columns, text_tokens, modulation, inputs, outputs}.
//   manifest, kernels   addresses of manifest.json and kernels/index.json
//   folder              where NAME.f32 is read for each of `inputs` and written for each of `outputs`, names of the plan
//   baseline            whether to open the device with core limits and no feature
//   rows, columns       of the latents
//   modulation          row of the table of modulations

import { readFile, writeFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import { openDevice } from "../../site/js/runtime/device.js";
import { Pacer } from "../../site/js/runtime/executor.js";
import { fetchJson } from "../../site/js/runtime/files.js";
import { parseManifest } from "../../site/js/runtime/manifest.js";
import { loadPipelines } from "../../site/js/runtime/pipelines.js";
import { parsePlan } from "../../site/js/runtime/plan.js";
import { prepare } from "../../site/js/runtime/prepare.js";
import { denoiserRotary } from "../../site/js/runtime/rotary.js";
import { bindingLimit, splitPlan } from "../../site/js/runtime/rows.js";
import { createShardSource } from "../../site/js/runtime/shards.js";
import { loadWeights } from "../../site/js/runtime/weights.js";

const [, , webgpu, requestFile] = process.argv;
const { create, globals } = await import(pathToFileURL(`${webgpu}/index.js`).href);
Object.assign(globalThis, globals);
const gpu = create([]); // must stay referenced: Dawn's binding crashes once it is collected
Object.defineProperty(globalThis, "navigator", { value: { gpu }, configurable: true }); // as in a browser

const request = JSON.parse(await readFile(requestFile, "utf8"));
const { rows, columns, text_tokens: textTokens } = request;
/** @param {string} name */
const file = (name) => `${request.folder}/${name}.f32`;

const manifest = parseManifest(await fetchJson(request.manifest), request.manifest);
const { denoiser } = manifest.components;
const shards = new URL(manifest.shards_url, request.manifest);
const source = createShardSource(manifest.shards, (shard) => new URL(shard.file, shards).href);
const context = await openDevice(gpu, { baseline: request.baseline });
const pipelines = await loadPipelines(context, request.kernels);
const { tensors } = await loadWeights(context, denoiser, source, { label: "weights", pipelines });
const plan = parsePlan(await fetchJson(new URL(denoiser.plan, request.manifest).href), "plan");
const symbols = { image_tokens: rows * columns, text_tokens: textTokens };
const executor = await prepare(context, splitPlan(plan, denoiser, bindingLimit(context.device.limits)),
  { symbols, tensors, pipelines, pacer: new Pacer() });

const rotary = denoiserRotary(manifest.denoiser.rotary, textTokens, rows, columns);
for (const kind of /** @type {const} */ (["cos", "sin"])) {
  const textValues = (textTokens * rotary[kind].length) / (textTokens + rows * columns);
  executor.write(`text_rotary_${kind}`, rotary[kind].subarray(0, textValues));
  executor.write(`image_rotary_${kind}`, rotary[kind].subarray(textValues));
}
const { table, width } = manifest.modulation;
const place = tensors.get(table);
await executor.copy("modulation", place.buffer, place.offset + 4 * width * request.modulation, width);
for (const name of request.inputs) {
  executor.write(name, new Float32Array(new Uint8Array(await readFile(file(name))).buffer));
}
await executor.run();
for (const name of request.outputs) await writeFile(file(name), new Uint8Array(await executor.read(name)));
process.exit(gpu ? 0 : 1);
