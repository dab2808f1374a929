// Compiles shaders on Dawn's null backend, which has every feature and computes nothing: stdin is a JSON list of
// {label, wgsl, constants, limits}, stdout JSON {pipelines: count, errors: {label: message}}. A shader that needs more
// than this backend's limits is only checked, no pipeline is made of it.
// Usage: node compile_null.mjs PATH_OF_THE_WEBGPU_PACKAGE

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { create, globals } = await import(pathToFileURL(`${process.argv[2]}/index.js`).href);
Object.assign(globalThis, globals);
const gpu = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: [...adapter.features] });
const errors = {};
let pipelines = 0;
for (const { label, wgsl, constants, limits } of JSON.parse(readFileSync(0, "utf8"))) {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code: wgsl });
  const { messages } = await module.getCompilationInfo();
  const said = messages.filter(({ type }) => type === "error").map(({ lineNum, message }) => `line ${lineNum}: ${message}`);
  if (said.length === 0 && Object.entries(limits).every(([name, needed]) => device.limits[name] >= needed)) {
    const made = device.createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint: "main", constants } });
    await made.then(() => { pipelines += 1; }, ({ message }) => { said.push(message); });
  }
  await device.popErrorScope();
  if (said.length > 0) errors[label] = said.join("; ");
}
process.stdout.write(JSON.stringify({ pipelines, errors }));
process.exit(gpu ? 0 : 1);
