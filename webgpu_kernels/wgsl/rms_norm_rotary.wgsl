// For each token and head of x: n = x / sqrt(mean(x²) + EPS) · weight over HEAD_SIZE channels, then
// each pair (n1, n2) turns by the angle whose cos and sin stand in row table_row + token:
//     y1 = n1·cos − n2·sin,  y2 = n2·cos + n1·sin
{% if layout == "interleaved" %}
// Pair p is channels 2p and 2p + 1.
{% else %}
// Pair p is channels p and p + HEAD_SIZE / 2.
{% endif %}

{{ interface }}
{% set sums = 1 %}
{% include "lib/norm_rows.wgsl" %}
{% from "lib/norm_loop.wgsl" import each with context %}

override PAIRS: u32 = HEAD_SIZE / 2u;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) workgroups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = (workgroup.x + workgroup.y * workgroups.x) * ROWS + thread / LANES;
    let lane = thread % LANES;
    // rows past the end repeat the last token up to the store: all threads must reach the barrier
    let token = min(row / HEADS, params.tokens - 1u);
    let head = row % HEADS;
    let x_row = params.x_offset + token * params.x_stride + head * params.x_head_stride;
    var squares = 0.0;
    {% call each("channel", "HEAD_SIZE") %}
    let value = x[x_row + channel];
    squares += value * value;
    {% endcall %}
    let inverse = inverseSqrt(row_sum(squares, thread, 0u) / f32(HEAD_SIZE) + EPS);
    if (row >= params.tokens * HEADS) {
        return;
    }
    let y_row = params.y_offset + token * params.y_stride + head * params.y_head_stride;
    let table = (params.table_row + token) * PAIRS;
    {% call each("pair", "PAIRS") %}
    {% if layout == "interleaved" %}
    let first = 2u * pair;
    let second = first + 1u;
    {% else %}
    let first = pair;
    let second = pair + PAIRS;
    {% endif %}
    let n1 = x[x_row + first] * inverse * weight[first];
    let n2 = x[x_row + second] * inverse * weight[second];
    let c = cos[table + pair];
    let s = sin[table + pair];
    y[y_row + first] = n1 * c - n2 * s;
    y[y_row + second] = n2 * c + n1 * s;
    {% endcall %}
}
