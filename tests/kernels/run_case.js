/**
 * Runs one kernel on given buffers: used by the browser page and by run_node.mjs alike.
 * Buffers come and go as base64, so that a job is plain JSON on both ways.
 *
 * @typedef {object} JobBinding
 * @property {string} name
 * @property {"read" | "read_write"} access
 * @property {string} data    whole buffer, base64
 * @property {number} offset  bytes, multiple of 256: where the binding starts
 * @property {number} size    bytes of the binding, from offset
 *
 * @typedef {object} Job
 * @property {string} label   kernel, variant and case, for messages
 * @property {string} file    content-named shader file: the cache key
 * @property {string} wgsl
 * @property {string[]} features
 * @property {Record<string, number>} limits
 * @property {Record<string, number>} constants
 * @property {JobBinding[]} bindings
 * @property {string} uniforms  base64
 * @property {[number, number, number]} groups
 */

/** @param {string} text @returns {Uint8Array} */
function fromBase64(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** @param {Uint8Array} bytes @returns {string} */
function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  }
  return btoa(text);
}

/**
 * Compiler messages, each with the shader line it speaks of.
 * @param {GPUShaderModule} shaderModule @param {string} wgsl @returns {Promise<string[]>}
 */
async function compilerErrors(shaderModule, wgsl) {
  const lines = wgsl.split("\n");
  const info = await shaderModule.getCompilationInfo();
  return info.messages
    .filter((message) => message.type === "error")
    .map((m) => `${m.lineNum}:${m.linePos} ${m.message}\n    ${lines[m.lineNum - 1] ?? ""}`);
}

/**
 * @param {GPU} gpu
 * @returns {{capabilities: () => Promise<{features: string[], limits: Record<string, number>}>,
 *   run: (job: Job) => Promise<Record<string, string>>}}
 *   `capabilities` are the adapter's. `run` gives every read_write buffer after the dispatch, whole, as base64; it throws an Error that
 *   names the job when the shader does not compile or WebGPU refuses anything.
 */
export function createRunner(gpu) {
  /** @type {Map<string, Promise<GPUDevice>>} */
  const devices = new Map();
  /** @type {Map<string, {pipeline: GPUComputePipeline, layout: GPUBindGroupLayout}>} */
  const pipelines = new Map();

  async function adapter() {
    const found = await gpu?.requestAdapter();
    if (!found) throw new Error("no WebGPU adapter: these tests need one");
    return found;
  }

  /** @param {Job} job */
  function deviceFor(job) {
    const key = JSON.stringify([job.features, job.limits]);
    let device = devices.get(key);
    if (!device) {
      device = adapter().then((found) =>
        found.requestDevice({
          requiredFeatures: /** @type {GPUFeatureName[]} */ (job.features),
          requiredLimits: job.limits,
        }),
      );
      devices.set(key, device);
    }
    return device;
  }

  /** @param {GPUDevice} device @param {Job} job */
  async function pipelineFor(device, job) {
    const key = JSON.stringify([job.file, job.constants, job.features, job.limits]);
    const known = pipelines.get(key);
    if (known) return known;
    device.pushErrorScope("validation");
    const shaderModule = device.createShaderModule({ code: job.wgsl, label: job.file });
    const errors = await compilerErrors(shaderModule, job.wgsl);
    if (errors.length) {
      await device.popErrorScope();
      throw new Error(`${job.label}: shader does not compile\n${errors.join("\n")}`);
    }
    /** @type {GPUBindGroupLayoutEntry[]} */
    const entries = job.bindings.map((binding, index) => ({
      binding: index,
      visibility: 4, // GPUShaderStage.COMPUTE, a global that Node does not have
      buffer: { type: binding.access === "read" ? "read-only-storage" : "storage" },
    }));
    entries.push({ binding: job.bindings.length, visibility: 4, buffer: { type: "uniform" } });
    const layout = device.createBindGroupLayout({ entries });
    const pipeline = device.createComputePipeline({
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module: shaderModule, entryPoint: "main", constants: job.constants },
    });
    const error = await device.popErrorScope();
    if (error) throw new Error(`${job.label}: ${error.message}`);
    pipelines.set(key, { pipeline, layout });
    return { pipeline, layout };
  }

  /** @param {Job} job @returns {Promise<Record<string, string>>} */
  async function run(job) {
    const device = await deviceFor(job);
    const { pipeline, layout } = await pipelineFor(device, job);
    /** @type {GPUBuffer[]} */
    const owned = [];
    /** @param {Uint8Array} data @param {number} usage */
    const upload = (data, usage) => {
      const buffer = device.createBuffer({ size: data.byteLength, usage });
      owned.push(buffer);
      device.queue.writeBuffer(buffer, 0, data);
      return buffer;
    };
    const STORAGE = 0x80 | 0x08 | 0x04; // STORAGE | COPY_DST | COPY_SRC
    const UNIFORM = 0x40 | 0x08; // UNIFORM | COPY_DST
    device.pushErrorScope("validation");
    device.pushErrorScope("out-of-memory");
    const buffers = job.bindings.map((binding) => upload(fromBase64(binding.data), STORAGE));
    const uniforms = upload(fromBase64(job.uniforms), UNIFORM);
    /** @type {GPUBindGroupEntry[]} */
    const entries = job.bindings.map((binding, index) => ({
      binding: index,
      resource: { buffer: buffers[index], offset: binding.offset, size: binding.size },
    }));
    entries.push({ binding: job.bindings.length, resource: { buffer: uniforms } });
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
    pass.dispatchWorkgroups(...job.groups);
    pass.end();
    const readbacks = [];
    for (const [index, binding] of job.bindings.entries()) {
      if (binding.access === "read") continue;
      const size = buffers[index].size;
      const readback = device.createBuffer({ size, usage: 0x01 | 0x08 }); // MAP_READ | COPY_DST
      owned.push(readback);
      encoder.copyBufferToBuffer(buffers[index], 0, readback, 0, size);
      readbacks.push({ name: binding.name, readback });
    }
    device.queue.submit([encoder.finish()]);
    const errors = [await device.popErrorScope(), await device.popErrorScope()].filter(Boolean);
    if (errors.length) throw new Error(`${job.label}: ${errors.map((e) => e?.message).join("; ")}`);
    /** @type {Record<string, string>} */
    const outputs = {};
    for (const { name, readback } of readbacks) {
      await readback.mapAsync(1); // GPUMapMode.READ
      outputs[name] = toBase64(new Uint8Array(readback.getMappedRange()));
    }
    for (const buffer of owned) buffer.destroy();
    return outputs;
  }

  async function capabilities() {
    const { features, limits } = await adapter();
    /** @type {Record<string, number>} */
    const numbers = {};
    for (const name in limits) {
      const value = limits[/** @type {keyof GPUSupportedLimits} */ (name)];
      if (typeof value === "number") numbers[name] = value;
    }
    return { features: [...features].sort(), limits: numbers };
  }

  return { capabilities, run };
}
