// y = x · Wᵀ + bias. x: f32[rows, K]; W: [N, K] in one of the formats of lib/unpack_*; y: f32[rows, N].
// Each thread owns {{ tile_rows }} rows by {{ tile_columns }} columns of y in named registers and unpacks every weight once
// for all its rows. No workgroup memory: every operand comes through the cache.
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
{% set vectors = {"f16": 1, "f32": 1, "binary": 4, "ternary": 4}.get(weights, 2) %}

fn store_four(row: u32, column: u32, sums: vec4f) {
    if (row >= params.rows || column >= N) {
        return;
    }
    let first = params.y_offset + row * params.y_stride + column;
    for (var i = 0u; i < min(4u, N - column); i++) {
        y[first + i] = sums[i]{{ " + bias[column + i]" if bias }};
    }
}

{% macro tile(rows) %}
{{ registers.begin(rows, tile_columns, "N") }}
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
{{ registers.end(rows, tile_columns) }}
{% endmacro %}
{{ registers.threads(tile_columns, "N") }}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) index: u32) {
    let tile = thread_tile(group, index);
    let column = tile.x * {{ tile_columns }}u;
    let first_row = tile.y * {{ tile_rows }}u;
    if (column >= N || first_row >= params.rows) {
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
