// y[row, column] = silu(gate[row, column]) · up[row, column]

{{ interface }}
{% include "lib/pointwise_functions.wgsl" %}
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
    let gate_row = params.gate_offset + row * params.gate_stride;
    let up_row = params.up_offset + row * params.up_stride;
    let y_row = params.y_offset + row * params.y_stride;
    for (var column = first + thread; column < end; column += THREADS) {
        y[y_row + column] = silu(gate[gate_row + column]) * up[up_row + column];
    }
}
