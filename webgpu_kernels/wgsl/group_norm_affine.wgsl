// scale = weight / sqrt(variance + EPS) and shift = bias - mean · scale of every channel, from the moments of all
// slots of stats: f32[slots, GROUPS, 3] (count, mean, sum of squared deviations; count 0 where a slot is empty).
// The merge is exact: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances" (1979). A workgroup a group: its threads take the slots in turn, then each merges all their parts.

{{ interface }}
{% include "lib/norm_moments.wgsl" %}

const THREADS = 32u;
override SIZE: u32 = CHANNELS / GROUPS;

var<workgroup> parts: array<Moments, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let group = workgroup.x;
    var part = Moments(0.0, 0.0, 0.0);
    for (var slot = thread; slot < params.slots; slot += THREADS) {
        let index = 3u * (slot * GROUPS + group);
        if (stats[index] > 0.0) {
            part = merge(part, Moments(stats[index], stats[index + 1u], stats[index + 2u]));
        }
    }
    parts[thread] = part;
    workgroupBarrier();
    var total = Moments(0.0, 0.0, 0.0);
    for (var i = 0u; i < THREADS; i++) {
        if (parts[i].count > 0.0) {
            total = merge(total, parts[i]);
        }
    }
    let factor = 1.0 / sqrt(total.squares / total.count + EPS);
    for (var channel = group * SIZE + thread; channel < (group + 1u) * SIZE; channel += THREADS) {
        let channel_scale = weight[channel] * factor;
        scale[channel] = channel_scale;
        shift[channel] = bias[channel] - total.mean * channel_scale;
    }
}
