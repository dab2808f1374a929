// Stands in for runtime/client.js in tests of the page. `globalThis.fake`, set before the page loads, says
// what happens: {probe: code} or {error: [phase, code]} fails there, {hold: phase} waits in that phase
// until the run is cancelled or `fake.release()` is called.

const PHASES = {
  load: [["compile", 12, "shaders"], ["download", 4e6, "bytes"]],
  generate: [["encode", 6, "parts"], ["denoise", 4, "steps"], ["decode", 8, "parts"]],
};

globalThis.fake ??= {};
fake.calls = [];

function failure(code) {
  return Object.assign(new Error(`expected all well, found ${code} in the test`), { code, hint: "a hint" });
}

function heldUntilReleased(signal) {
  return new Promise((resolve, reject) => {
    fake.release = resolve;
    signal.addEventListener("abort", () => reject(failure("aborted")));
  });
}

async function run(phases, { signal, onProgress }) {
  for (const [phase, total, unit] of phases) {
    for (const part of [0, 0.5, 1]) {
      onProgress({ phase, done: Math.round(part * total), total, unit, fraction: part });
      if (part === 0.5 && fake.hold === phase) await heldUntilReleased(signal);
      if (part === 0.5 && fake.error?.[0] === phase) throw failure(fake.error[1]);
      await new Promise((resolve) => { setTimeout(resolve, 5); });
      if (signal.aborted) throw failure("aborted");
    }
  }
}

/** A picture that differs by seed: diagonal stripes. */
function draw(width, height, seed) {
  const pixels = new Uint8ClampedArray(4 * width * height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const band = Math.floor((x + y) / 16) % 2;
      pixels.set([seed % 256, band ? 160 : 90, 120, 255], 4 * (y * width + x));
    }
  }
  return pixels;
}

export function createClient(settings) {
  fake.calls.push(["create"]);
  fake.settings = settings;
  return {
    async probe() {
      if (fake.probe) throw failure(fake.probe);
      return { adapter: { vendor: "test", architecture: "stripes" }, features: [], limits: {}, offers: fake.offers ?? [] };
    },
    async load(url, options) {
      fake.calls.push(["load", new URL(url).pathname]);
      fake.memoryBudget = options.memoryBudget;
      await run(PHASES.load, options);
      return { kernels: { summary: `matmul: ${fake.settings?.forceVariant ?? "striped"}`, rejected: [] } };
    },
    async generate(request, options) {
      fake.calls.push(["generate", request]);
      await run(PHASES.generate, options);
      const { width, height, seed, steps } = request;
      const latents = options.latents ? new Float32Array(steps * (width / 16) * (height / 16) * 8).map((_, i) => i) : undefined;
      return { pixels: draw(width, height, seed), width, height, seed, timings_ms: { denoise: 4 }, latents };
    },
    async memory() {
      return { total: 0, byLabel: {} };
    },
    dispose() {
      fake.calls.push(["dispose"]);
    },
  };
}
