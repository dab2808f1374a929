// y = x / sqrt(mean(x²) + EPS) · weight for each row of x: f32[rows, COLUMNS]

{{ interface }}
{% set sums = 1 %}
{% include "lib/norm_rows.wgsl" %}
{% from "lib/norm_loop.wgsl" import each with context %}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) workgroups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = (workgroup.x + workgroup.y * workgroups.x) * ROWS + thread / LANES;
    let lane = thread % LANES;
    // rows past the end repeat the last one up to the store: all threads must reach the barrier
    let x_row = params.x_offset + min(row, params.rows - 1u) * params.x_stride;
    var squares = 0.0;
    {% call each("column", "COLUMNS") %}
    let value = x[x_row + column];
    squares += value * value;
    {% endcall %}
    let inverse = inverseSqrt(row_sum(squares, thread, 0u) / f32(COLUMNS) + EPS);
    if (row >= params.rows) {
        return;
    }
    let y_row = params.y_offset + row * params.y_stride;
    {% call each("column", "COLUMNS") %}
    y[y_row + column] = x[x_row + column] * inverse * weight[column];
    {% endcall %}
}
