// How much a dispatch computes: exactly, for rates, and roughly, to cut plans into short submits.

/**
 * @typedef {Pick<import("./plan.js").Dispatch, "kernel" | "options">} Kind
 * @typedef {Record<string, number>} Sizes uniforms and constants of one dispatch, by name
 */

/** Multiply-adds that take as long as moving one f32 through memory: at least, on the adapters met. */
const WORK_PER_ELEMENT = 32;

/** Attention's multiply-adds are so much slower than a matrix product's. */
const ATTENTION_FACTOR = 3;

/**
 * Multiply-adds of a dispatch; 0 for kernels that only move and scale values.
 * @param {Kind} kind
 * @param {Sizes} sizes
 */
export function multiplyAdds({ kernel, options }, sizes) {
  if (kernel.startsWith("linear")) return sizes.rows * sizes.N * sizes.K * (options.epilogue === "swiglu" ? 2 : 1);
  if (kernel === "conv2d") {
    const pixels = sizes.rows * sizes.width * (options.upsample ? 2 : 1);
    return pixels * sizes.IN_CHANNELS * sizes.OUT_CHANNELS * sizes.KERNEL_SIZE ** 2;
  }
  if (kernel === "attention") {
    const seen = options.mask === "causal" ? 0.5 : 1;
    return 2 * seen * sizes.q_tokens * sizes.kv_tokens * sizes.HEADS * sizes.HEAD_SIZE;
  }
  return 0;
}

/**
 * What a dispatch costs, in multiply-adds of a matrix product.
 * @param {Kind} kind
 * @param {Sizes} sizes
 * @param {number} bytes of all its operands
 */
export function estimateWork(kind, sizes, bytes) {
  const factor = kind.kernel === "attention" ? ATTENTION_FACTOR : 1;
  return factor * multiplyAdds(kind, sizes) + WORK_PER_ELEMENT * (bytes / 4);
}
