// Jobs as JSON lines on stdin, answers as JSON lines on stdout; the first line says what the adapter can do.
// Usage: node run_node.mjs PATH_OF_THE_WEBGPU_PACKAGE

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { createRunner } from "./run_case.js";

const { create, globals } = await import(pathToFileURL(`${process.argv[2]}/index.js`).href);
Object.assign(globalThis, globals);
const gpu = create([]); // must stay referenced: Dawn's binding crashes once it is collected
const runner = createRunner(gpu);

/** @param {() => Promise<object>} work */
async function answer(work) {
  let line;
  try {
    line = JSON.stringify(await work());
  } catch (error) {
    line = JSON.stringify({ error: error instanceof Error ? error.message : String(error) });
  }
  process.stdout.write(`${line}\n`);
}

await answer(() => runner.capabilities());
for await (const line of createInterface({ input: process.stdin })) {
  await answer(async () => ({ outputs: await runner.run(JSON.parse(line)) }));
}
process.exit(gpu ? 0 : 1);
