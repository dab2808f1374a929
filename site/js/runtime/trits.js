// Ternary weights are downloaded as five trits a byte; a kernel expands them to the codes that plans bind.

import { evaluateCount } from "./expressions.js";
import { TRIT_UNIT } from "./manifest.js";
import { ALIGNMENT } from "./memory.js";

/**
 * @typedef {import("./device.js").DeviceContext} DeviceContext
 * @typedef {import("./manifest.js").Component} Component
 * @typedef {import("./pipelines.js").Compiled} Compiled
 * @typedef {import("./pipelines.js").Pipelines} Pipelines
 * @typedef {Pick<import("./plan.js").Plan, "component" | "dispatches">} Dispatches
 */

const PARAMS_BYTES = 16;

/** @type {Dispatches} */
const EXPANSION = {
  component: "upload",
  dispatches: [{ kernel: "expand_trits", options: {}, constants: {}, uniforms: {}, bindings: {} }],
};

/**
 * What bringing components to the GPU dispatches, beside their plans.
 * @param {Component[]} components
 * @returns {Dispatches[]}
 */
export function uploadDispatches(components) {
  const expands = components.some(({ tensors }) => Object.values(tensors).some((tensor) => tensor.expands_to));
  return expands ? [EXPANSION] : [];
}

/** Expands trits piece by piece through one buffer that all pieces share. Whoever opens it destroys it. */
class TritExpander {
  /**
   * @param {DeviceContext} context
   * @param {Compiled} compiled
   * @param {number} pieceBytes at most
   */
  constructor(context, compiled, pieceBytes) {
    this.context = context;
    this.compiled = compiled;
    this.staging = context.createBuffer("staging", pieceBytes, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST);
    this.params = context.createBuffer("staging", PARAMS_BYTES, GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST);
  }

  /**
   * The queue keeps the order, so the next piece may follow at once.
   * @param {GPUBuffer} buffer of the codes
   * @param {number} offset bytes, a multiple of 4
   * @param {number} end of the tensor: codes beyond it are padding
   * @param {Uint8Array<ArrayBuffer>} trits whole units
   */
  write(buffer, offset, end, trits) {
    const { device } = this.context;
    const { entry, pipeline, layout } = this.compiled;
    const start = offset - (offset % ALIGNMENT);
    const words = Math.min((trits.length / TRIT_UNIT.bytes) * TRIT_UNIT.words, (end - offset) / 4);
    const values = { words, codes_offset: (offset - start) / 4 };
    device.queue.writeBuffer(this.staging, 0, trits);
    device.queue.writeBuffer(this.params, 0, new Uint32Array([values.words, values.codes_offset]));
    const resources = [
      { buffer: this.staging, size: trits.length },
      { buffer, offset: start, size: offset - start + 4 * words },
      { buffer: this.params },
    ];
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, device.createBindGroup({
      layout, entries: resources.map((resource, binding) => ({ binding, resource })),
    }));
    const [x, y, z] = entry.groups.map((count) => evaluateCount(count, values, "kernel expand_trits, groups", 1));
    pass.dispatchWorkgroups(x, y, z);
    pass.end();
    device.queue.submit([encoder.finish()]);
  }

  destroy() {
    this.context.destroyBuffer(this.staging);
    this.context.destroyBuffer(this.params);
  }
}

/**
 * @param {DeviceContext} context
 * @param {Component} component
 * @param {Pipelines} pipelines
 * @param {number} pieceBytes that `write` gets at most
 * @returns {Promise<TritExpander | null>} null for a component without trits
 */
export async function openExpander(context, component, pipelines, pieceBytes) {
  const [upload] = uploadDispatches([component]);
  if (!upload) return null;
  const compiled = await context.guard(pipelines.get(upload.dispatches[0], upload.component));
  const most = largestPiece(component, pieceBytes);
  return context.scoped("expanding trits", () => new TritExpander(context, compiled, most));
}

/**
 * Bytes of the largest piece of trits that `write` gets; 0 for a component without trits.
 * @param {Component} component
 * @param {number} pieceBytes at most
 */
function largestPiece({ tensors }, pieceBytes) {
  const trits = Object.values(tensors).filter((tensor) => tensor.expands_to);
  return Math.min(pieceBytes, Math.max(0, ...trits.flatMap(({ parts }) => parts.map(({ bytes }) => bytes))));
}

/**
 * Bytes on the GPU that loading a component takes beside its weights, until they are there.
 * @param {Component} component
 * @param {number} pieceBytes that the expander gets at most
 */
export function expanderBytes(component, pieceBytes) {
  const most = largestPiece(component, pieceBytes);
  return most ? most + PARAMS_BYTES : 0;
}
