// Rows of x as f16, dense, two in a word; beyond the range of f16 a value becomes the greatest. A thread converts 8.
// COLUMNS is a multiple of 8, x_offset and x_stride of 4.
{{ interface }}
override EIGHTS: u32 = COLUMNS / 8u;

{% include "lib/f16_pairs.wgsl" %}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let eight = (group.x + group.y * groups.x) * 256u + thread;
    let row = eight / EIGHTS;
    if (row >= params.rows) {
        return;
    }
    let at = (params.x_offset + row * params.x_stride) / 4u + eight % EIGHTS * 2u;
    y[eight] = vec4u(pairs(x[at]), pairs(x[at + 1u]));
}
