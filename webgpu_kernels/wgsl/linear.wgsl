// y = x · Wᵀ + bias, and what lib/epilogue.wgsl makes of it. x: f32[rows, K]; W in one of the formats of lib/unpack_*;
// y: f32[rows, N]. Each thread owns {{ tile_rows }} rows of x by {{ tile_columns }} of W in named registers and unpacks every
// weight once for all its rows. No workgroup memory: every operand comes through the cache.
{% import "lib/tile.wgsl" as registers %}
{% if quads %}
// Four neighbouring threads have the same rows: each loads a fourth of x for all of them. N is a multiple of eight tiles,
// so that none of them is missing. Where a CPU computes, a load costs as much as some thirty products.
enable subgroups;
diagnostic(off, subgroup_uniformity);
{% endif %}
{{ interface }}
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}
{% include "lib/linear_rows.wgsl" %}
{% set vectors = LOAD_VECTORS[weights] %}
{% set half = tile_columns // 2 %}
{% set swiglu = epilogue == "swiglu" %}
{% include "lib/epilogue.wgsl" %}

// Four columns of a row of y from that of a column of the tile on, those inside y.
fn store_four(row: u32, tile_column: u32, {{ "gates: vec4f, ups: vec4f" if swiglu else "sums: vec4f" }}) {
    let column = y_column(tile_column);
    if (row >= params.rows || column >= N) {
        return;
    }
    let first = params.y_offset + row * params.y_stride + column;
    for (var i = 0u; i < min(4u, N - column); i++) {
        y[first + i] = finished(row, column + i, {{ "gates[i], ups[i]" if swiglu else "sums[i]" }});
    }
}

{% macro tile(rows) %}
{{ registers.begin(rows, tile_columns, "w_row(%s)") }}
{% for r in range(rows) %}
    let x_row{{ r }} = x_row(row + {{ r }}u);
{% endfor %}
    for (var step = 0u; step * {{ 4 * vectors }}u < K; step++) {
        let at = weight_step(step);
{% for c in range(tile_columns) %}
        let w{{ c }} = load_weights(weight_row{{ c }}, at);
{% endfor %}
{% if quads %}
{% for r in range(rows) %}
        let quarter{{ r }} = load_x(x_row{{ r }}, step * 4u + (index & 3u));
{% endfor %}
{% call(r, v) registers.accumulate(rows, tile_columns, vectors) %}
        quadBroadcast(quarter{{ r }}, {{ v }}u)
{% endcall %}
{% else %}
{% call(r, v) registers.accumulate(rows, tile_columns, vectors) %}
        load_x(x_row{{ r }}, step * {{ vectors }}u + {{ v }}u)
{% endcall %}
{% endif %}
    }
{{ registers.end(rows, tile_columns, half if swiglu else 0) }}
{% endmacro %}
{{ registers.threads(half if swiglu else tile_columns, "N") }}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) index: u32) {
    let tile = thread_tile(group, index);
    let column = tile.x * {{ tile_columns }}u;
    let first_row = tile.y * {{ tile_rows }}u;
    if (y_column(column) >= N || first_row >= params.rows) {
        return;
    }
    if (params.rows - first_row <= 2u) {
        for (var row = first_row; row < params.rows; row++) {
{{ tile(1) }}
        }
        return;
    }
    let row = first_row;
{{ tile(tile_rows) }}
}
