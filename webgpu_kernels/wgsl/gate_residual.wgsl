// y[row, column] = residual[row, column] + gate[column] · x[row, column]

{{ interface }}
{% include "lib/pointwise_rows.wgsl" %}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) workgroups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = workgroup.x + workgroup.y * workgroups.x;
    let row = group / BLOCKS;
    if (row >= params.rows) {
        return;
    }
    let first = (group % BLOCKS) * COLUMN_BLOCK;
    let end = min(first + COLUMN_BLOCK, COLUMNS);
    let residual_row = params.residual_offset + row * params.residual_stride;
    let x_row = params.x_offset + row * params.x_stride;
    let y_row = params.y_offset + row * params.y_stride;
    for (var column = first + thread; column < end; column += THREADS) {
        y[y_row + column] = residual[residual_row + column] + gate[params.gate_offset + column] * x[x_row + column];
    }
}
