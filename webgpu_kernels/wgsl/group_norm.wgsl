// y = (x − mean) / sqrt(variance + EPS) · weight + bias over groups of channels of
// x: f32[pixels, CHANNELS], from the chunks' moments that group_norm_stats wrote{{ "; then silu" if silu }}.
// One thread a channel and PIXELS pixels; it merges the chunks itself, which needs no barrier.

{{ interface }}
{% include "lib/norm_moments.wgsl" %}
{% include "lib/pointwise_functions.wgsl" %}

const THREADS = 64u;
const PIXELS = 128u; // amortizes the merge of CHUNKS moments
override SIZE: u32 = CHANNELS / GROUPS;

fn group_moments(group: u32) -> Moments {
    let chunk_pixels = (params.pixels + CHUNKS - 1u) / CHUNKS;
    var total = Moments(0.0, 0.0, 0.0);
    for (var chunk = 0u; chunk * chunk_pixels < params.pixels; chunk++) {
        let pixels = min(chunk_pixels, params.pixels - chunk * chunk_pixels);
        let index = 2u * (group * CHUNKS + chunk);
        total = merge(total, Moments(f32(pixels * SIZE), stats[index], stats[index + 1u]));
    }
    return total;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let channel = workgroup.y * THREADS + thread;
    if (channel >= CHANNELS) {
        return;
    }
    let moments = group_moments(channel / SIZE);
    let factor = inverseSqrt(moments.squares / moments.count + EPS) * weight[channel];
    let offset = bias[channel];
    let first = workgroup.x * PIXELS;
    let end = min(first + PIXELS, params.pixels);
    for (var pixel = first; pixel < end; pixel++) {
        let index = pixel * CHANNELS + channel;
        let value = (x[params.x_offset + index] - moments.mean) * factor + offset;
        {% if silu %}
        y[params.y_offset + index] = silu(value);
        {% else %}
        y[params.y_offset + index] = value;
        {% endif %}
    }
}
