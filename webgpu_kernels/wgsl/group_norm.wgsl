// y = x · scale + shift by channel of x: f32[pixels, CHANNELS]{{ "; then silu" if silu }}.
// One thread a channel and PIXELS pixels.

{{ interface }}
{% include "lib/pointwise_functions.wgsl" %}

const THREADS = 64u;
const PIXELS = 64u;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let channel = workgroup.y * THREADS + thread;
    if (channel >= CHANNELS) {
        return;
    }
    let first = workgroup.x * PIXELS;
    let end = min(first + PIXELS, params.pixels);
    for (var pixel = first; pixel < end; pixel++) {
        let index = pixel * CHANNELS + channel;
        let value = x[params.x_offset + index] * scale[channel] + shift[channel];
        y[params.y_offset + index] = {{ "silu(value)" if silu else "value" }};
    }
}
