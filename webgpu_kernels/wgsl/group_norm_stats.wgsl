// stats[slot_first + chunk, group] = (count, mean, sum of squared deviations) of the group's channels over one
// chunk of pixels of x: f32[pixels, CHANNELS]; a chunk is ceil(pixels / CHUNKS) pixels, the last ones fewer.
// Empty chunks give zeros. One thread a chunk and group: neighbouring threads read neighbouring groups
// of the same pixel, and no barrier is needed.

{{ interface }}
{% include "lib/norm_moments.wgsl" %}

const THREADS = 64u;
override SIZE: u32 = CHANNELS / GROUPS; // channels of a group

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) workgroups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = (workgroup.x + workgroup.y * workgroups.x) * THREADS + thread;
    let group = item % GROUPS;
    let chunk = item / GROUPS;
    if (chunk >= CHUNKS) {
        return;
    }
    let chunk_pixels = (params.pixels + CHUNKS - 1u) / CHUNKS;
    let first = min(chunk * chunk_pixels, params.pixels);
    let end = min(first + chunk_pixels, params.pixels);
    let base = params.x_offset + group * SIZE;
    // All values are taken relative to one of them, so that the means are small even where the values are
    // large.
    let pivot = x[base + min(first, params.pixels - 1u) * CHANNELS];

    // Welford's update for four sets at once: pixels 0, 1, 2 and 3 of every four.
    var count = 0.0;
    var mean = vec4f();
    var squares = vec4f();
    var pixel = first;
    for (; pixel + 3u < end; pixel += 4u) {
        let row = base + pixel * CHANNELS;
        for (var channel = row; channel < row + SIZE; channel++) {
            let value = vec4f(
                x[channel],
                x[channel + CHANNELS],
                x[channel + 2u * CHANNELS],
                x[channel + 3u * CHANNELS],
            ) - pivot;
            count += 1.0;
            let distance = value - mean;
            mean += distance * (1.0 / count);
            squares += distance * (value - mean);
        }
    }
    var total = Moments(0.0, 0.0, 0.0);
    if (count > 0.0) {
        total = Moments(count, mean.x, squares.x);
        total = merge(total, Moments(count, mean.y, squares.y));
        total = merge(total, Moments(count, mean.z, squares.z));
        total = merge(total, Moments(count, mean.w, squares.w));
    }
    for (; pixel < end; pixel++) {
        let row = base + pixel * CHANNELS;
        for (var channel = row; channel < row + SIZE; channel++) {
            total = merge(total, Moments(1.0, x[channel] - pivot, 0.0));
        }
    }
    let index = 3u * ((params.slot_first + chunk) * GROUPS + group);
    stats[index] = total.count;
    stats[index + 1u] = select(0.0, total.mean + pivot, total.count > 0.0);
    stats[index + 2u] = total.squares;
}
