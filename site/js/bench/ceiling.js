// What the adapter can do at most, measured: multiply-adds on registers alone, and a copy of memory. A kernel's rate
// is given as a share of these.

import { isSoftware } from "../runtime/device.js";
import { fillRandom } from "../runtime/random.js";
import { Stopwatch } from "../runtime/stopwatch.js";

const THREADS = 256;
const LOOPS = 64;
// Times that the step stands in the loop: its counter would take a tenth of the unit from a short one.
const UNROLL = 4;
const COPY_BYTES = 64 * 2 ** 20;

/** Accumulators are named variables: an array indexed by a loop would lie in memory. */
const repeat = (count, line) => Array.from({ length: count }, (_, index) => line(index)).join("\n    ");

/**
 * A kernel that multiplies registers LOOPS * UNROLL times.
 * @param {{enable?: string, globals?: string, setup: string, step: string, result: string}} parts
 */
const shader = ({ enable = "", globals = "", setup, step, result }) => `${enable}
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
${globals}
@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(local_invocation_index) local: u32) {
    let seed = y[id.x & 255u];
    ${setup}
    for (var turn = 0u; turn < ${LOOPS}u; turn++) {
    ${repeat(UNROLL, () => step)}
    }
    ${result}
}`;

/**
 * 32 sums in vectors; each is multiplied and added to, with nothing between.
 * @param {"f32" | "f16"} type
 * @param {2 | 4} size
 */
function vectors(type, size) {
  const [vector, count] = [`vec${size}<${type}>`, 32 / size];
  return {
    macs: 32 * LOOPS * UNROLL * THREADS,
    code: shader({
      enable: type === "f16" ? "enable f16;" : "",
      setup: `let m = ${vector}(${type}(seed)); let b = m * ${type}(0.5);
    ${repeat(count, (i) => `var a${i} = ${vector}(${type}(local + ${i}u));`)}`,
      step: repeat(count, (i) => `a${i} = fma(a${i}, m, b);`),
      result: `let sum = ${repeat(count, (i) => `a${i}`).replaceAll("\n    ", " + ")};
    if (dot(sum, sum) == 12345) { y[id.x & 255u] = f32(sum.x); }`,
    }),
  };
}

// Each sum gets the dot of another one, so operands change at every step, and no instruction is needed to change them.
// Half of the sums lie between a sum and its use.
const DOTS = {
  macs: 4 * 16 * LOOPS * UNROLL * THREADS,
  code: shader({
    setup: `let m = bitcast<u32>(seed) ^ local; ${repeat(16, (i) => `var a${i} = i32(m * ${2 * i + 1}u);`)}`,
    step: repeat(16, (i) => `a${i} += dot4I8Packed(bitcast<u32>(a${(i + 8) % 16}), m);`),
    result: `let sum = ${repeat(16, (i) => `a${i}`).replaceAll("\n    ", " + ")};
    if (sum == 12345) { y[id.x & 255u] = f32(sum); }`,
  }),
};

/** @param {import("../runtime/device.js").MatrixConfig} config @param {number} subgroup threads */
function matrices({ componentType, resultComponentType, M, N, K }, subgroup) {
  const quad = componentType === "i8" ? 16 : 8; // elements in 16 bytes
  const subgroups = THREADS / subgroup;
  const load = (kind, a, b, layout) =>
    `subgroupMatrixLoad<subgroup_matrix_${kind}<${componentType}, ${a}, ${b}>, ${layout}>(&tile, 0u, ${K / quad}u)`;
  const result = `subgroup_matrix_result<${resultComponentType}, ${N}, ${M}>`;
  return {
    macs: M * N * K * 8 * LOOPS * UNROLL * subgroups,
    code: shader({
      enable: `enable chromium_experimental_subgroup_matrix; enable subgroups;${quad === 8 ? " enable f16;" : ""}
diagnostic(off, chromium.subgroup_matrix_uniformity);`,
      globals: `var<workgroup> tile: array<vec4u, ${(Math.max(M, N) * K) / quad}>;
var<workgroup> out: array<vec4u, ${((M * N) / 4) * subgroups}>;`,
      // 1 and 0.5 as halves, whatever bytes.
      setup: `for (var at = local; at < ${(Math.max(M, N) * K) / quad}; at += ${THREADS}u) { tile[at] = vec4u(0x3c003800u) ^ vec4u(u32(seed == 12345.0)); }
    workgroupBarrier();
    let left = ${load("left", K, M, "row_major")};
    let right = ${load("right", N, K, "col_major")};
    ${repeat(8, (i) => `var a${i} = ${result}();`)}`,
      step: repeat(8, (i) => `a${i} = subgroupMatrixMultiplyAccumulate(left, right, a${i});`),
      result: `let place = local / ${subgroup}u * ${(M * N) / 4}u;
    ${repeat(8, (i) => `subgroupMatrixStore<row_major>(&out, place, a${i}, ${N / 4}u);\n    workgroupBarrier();
    if (out[local].x == 12345u) { y[id.x & 255u] = f32(out[local].y); }\n    workgroupBarrier();`)}`,
    }),
  };
}

/**
 * Time one microkernel.
 * @param {import("../runtime/device.js").DeviceContext} context
 * @param {Stopwatch} watch
 * @param {{code: string, groups: number, buffers: GPUBuffer[]}} kernel
 */
async function timed(context, watch, { code, groups, buffers }) {
  const { device } = context;
  const step = await context.scoped("ceiling", () => {
    const pipeline = device.createComputePipeline({
      layout: "auto", compute: { module: device.createShaderModule({ code }), entryPoint: "main" },
    });
    const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
    const bindGroup = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    return { pipeline, bindGroup, groups: [groups, 1, 1], work: 0 };
  });
  let repeats = 1;
  let best = await watch.time([step], repeats);
  best = Math.min(best, await watch.time([step], repeats));
  repeats = Math.max(1, Math.min(100, Math.round(20 / best)));
  for (let run = 0; run < 3; run += 1) best = Math.min(best, (await watch.time([step], repeats)) / repeats);
  return best;
}

/**
 * Multiply-adds a second by kind of arithmetic, and bytes a second of a copy.
 * @param {import("../runtime/device.js").DeviceContext} context
 * @returns {Promise<Record<string, number>>} f32, f16, int8, matrix_f16, matrix_int8, copy; only what the adapter has
 */
export async function measureCeilings(context) {
  const { device, features, facts } = context;
  const software = isSoftware(context.facts.adapter);
  const groups = software ? 8 : 4096;
  // Two of one name: drivers differ in what they pair into one instruction; the fastest counts.
  const kinds = [["f32", vectors("f32", 4)]];
  if (features.has("shader-f16")) kinds.push(["f16", vectors("f16", 2)], ["f16", vectors("f16", 4)]);
  if (features.has("packed_4x8_integer_dot_product")) kinds.push(["int8", DOTS]);
  const subgroup = device.adapterInfo?.subgroupMaxSize ?? 32;
  for (const [name, component, result] of [["matrix_f16", "f16", "f32"], ["matrix_int8", "i8", "i32"]]) {
    const fitting = features.has("chromium-experimental-subgroup-matrix") ? facts.subgroupMatrixConfigs.filter((config) =>
      config.componentType === component && config.resultComponentType === result) : [];
    fitting.sort((a, b) => b.M * b.N * b.K - a.M * a.N * a.K);
    if (fitting.length) kinds.push([name, matrices(fitting[0], subgroup)]);
  }
  const watch = new Stopwatch(context);
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST;
  const buffers = [0, 1].map(() => context.createBuffer("ceiling", software ? COPY_BYTES / 16 : COPY_BYTES, usage));
  try {
    fillRandom(device.queue, buffers[0], 0, buffers[0].size, "normal");
    const found = {};
    for (const [name, { macs, code }] of kinds) {
      try {
        const ms = await timed(context, watch, { code, groups, buffers: buffers.slice(0, 1) });
        found[name] = Math.max(found[name] ?? 0, (macs * groups) / (ms / 1000));
      } catch (error) {
        console.warn(`ceiling ${name}: ${error.message}`);
      }
    }
    const copyGroups = Math.min(16384, buffers[0].size / 16 / THREADS);
    const code = `@group(0) @binding(0) var<storage, read_write> x: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;
@compute @workgroup_size(${THREADS}) fn main(@builtin(global_invocation_id) id: vec3u) { y[id.x] = x[id.x]; }`;
    const ms = await timed(context, watch, { code, groups: copyGroups, buffers });
    return { ...found, copy: (2 * copyGroups * THREADS * 16) / (ms / 1000) };
  } finally {
    watch.destroy();
    buffers.forEach((buffer) => context.destroyBuffer(buffer));
  }
}
