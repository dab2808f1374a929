// y = (x − mean) / sqrt(variance + EPS) for each row of x: f32[rows, COLUMNS]
{% if affine == "weight" %}
//     · weight
{% elif affine == "weight_bias" %}
//     · weight + bias
{% endif %}
{% if modulate %}
//     · (1 + scale) + shift, one row for all rows of x
{% endif %}
// Values are taken relative to the row's first one, then twice: once for the mean, once for the
// variance. So a mean far above the deviation costs no digits.

{{ interface }}
{% set sums = 2 %}
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
    // rows past the end repeat the last one up to the store: all threads must reach the barriers
    let x_row = params.x_offset + min(row, params.rows - 1u) * params.x_stride;
    let pivot = x[x_row];
    var sum = 0.0;
    {% call each("column", "COLUMNS") %}
    sum += x[x_row + column] - pivot;
    {% endcall %}
    let mean = row_sum(sum, thread, 0u) / f32(COLUMNS);
    var squares = 0.0;
    {% call each("column", "COLUMNS") %}
    let deviation = (x[x_row + column] - pivot) - mean;
    squares += deviation * deviation;
    {% endcall %}
    let inverse = inverseSqrt(row_sum(squares, thread, 1u) / f32(COLUMNS) + EPS);
    if (row >= params.rows) {
        return;
    }
    let y_row = params.y_offset + row * params.y_stride;
    {% call each("column", "COLUMNS") %}
    var value = ((x[x_row + column] - pivot) - mean) * inverse;
    {% if affine != "none" %}
    value *= weight[column];
    {% endif %}
    {% if affine == "weight_bias" %}
    value += bias[column];
    {% endif %}
    {% if modulate %}
    value = value * (1.0 + scale[params.scale_offset + column]) + shift[params.shift_offset + column];
    {% endif %}
    y[y_row + column] = value;
    {% endcall %}
}
