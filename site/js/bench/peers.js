// onnxruntime-web beside our kernels: one matrix product, timed by the clock with operands that stay on the GPU.

import { fillRandom } from "../runtime/random.js";

/**
 * Milliseconds of one run.
 * @param {string} entry script of the engine
 * @param {string} file its model
 * @param {number} rows
 * @param {number} n
 * @param {number} k
 * @param {number} runs of which the median is taken
 */
export async function timePeer(entry, file, rows, n, k, runs) {
  const base = new URL("../../peers/", import.meta.url).href;
  const ort = await import(new URL(entry, base).href);
  ort.env.wasm.wasmPaths = base;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const bytes = new Uint8Array(await (await fetch(new URL(file, base))).arrayBuffer());
  const session = await ort.InferenceSession.create(bytes, {
    executionProviders: ["webgpu"], preferredOutputLocation: "gpu-buffer",
  });
  /** @type {GPUBuffer | undefined} */
  let buffer;
  try {
    const device = await ort.env.webgpu.device;
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
    buffer = device.createBuffer({ size: 4 * rows * k, usage });
    fillRandom(device.queue, buffer, 0, 4 * rows * k, "normal");
    const x = ort.Tensor.fromGpuBuffer(buffer, { dataType: "float32", dims: [rows, k] });
    const times = [];
    let repeats = 1;
    for (let run = -1; run < runs; run += 1) {
      const began = performance.now();
      for (let repeat = 0; repeat < repeats; repeat += 1) {
        const { y } = await session.run({ x });
        y.dispose();
      }
      await device.queue.onSubmittedWorkDone();
      const ms = (performance.now() - began) / repeats;
      if (run >= 0) times.push(ms);
      repeats = Math.max(1, Math.min(50, Math.round(200 / ms)));
    }
    times.sort((a, b) => a - b);
    return { ms: times[Math.floor(times.length / 2)], least: times[0], most: times[times.length - 1] };
  } finally {
    buffer?.destroy();
    await session.release();
  }
}
