// y[row] = table[ids[row] - first_row], where that is below table_rows; other rows of y stay as they are, so
// that a table bound window by window fills them in turn. ids: u32[rows]; table: [table_rows, COLUMNS] in one of
// the formats of lib/unpack_*; y: f32[rows, COLUMNS]. One thread writes four columns.
{{ interface }}
override K: u32 = COLUMNS;
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}
{% set vectors = LOAD_VECTORS[weights] %}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let index = id.x + id.y * groups.x * 256u;
    let row_length = (K + 3u) / 4u;
    let row = index / row_length;
    if (row >= params.rows) {
        return;
    }
    let table_row = ids[row] - params.first_row; // wraps to a great number below the window
    if (table_row >= params.table_rows) {
        return;
    }
    let part = index % row_length;
    let values = load_weights(weight_row(table_row), weight_step(part / {{ vectors }}u)){{ "[part % 2u]" if vectors > 1 }};
    let first = params.y_offset + row * params.y_stride + part * 4u;
    for (var i = 0u; i < min(4u, K - part * 4u); i++) {
        y[first + i] = values[i];
    }
}
