// y = conv(x, W) + bias with stride 1 and zero padding KERNEL_SIZE / 2, as an implicit matrix product.
// x: f32[height, width, IN_CHANNELS]; W: [OUT_CHANNELS, KERNEL_SIZE, KERNEL_SIZE, IN_CHANNELS], f16 in pairs
// or f32; y: f32[height, width, OUT_CHANNELS].
// Each thread owns {{ tile_rows }} neighbouring pixels of one image row by {{ tile_columns }} output channels.
{% import "lib/tile.wgsl" as registers %}
{% if quads %}
// Four neighbouring threads have the same pixels: each loads and normalizes a fourth of them for all. OUT_CHANNELS is a
// multiple of four tiles, so that none of the four is missing.
enable subgroups;
diagnostic(off, subgroup_uniformity);
{% endif %}
{{ interface }}
override K: u32 = KERNEL_SIZE * KERNEL_SIZE * IN_CHANNELS;
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}
override TAP_STEPS: u32 = (IN_CHANNELS + 3u) / 4u;
override STEPS: u32 = KERNEL_SIZE * KERNEL_SIZE * TAP_STEPS;

{% include "lib/picture.wgsl" %}

var<private> image_row: u32;

fn store_four(row: u32, column: u32, sums: vec4f) {
    if (row >= picture_width() || column >= OUT_CHANNELS) {
        return;
    }
    for (var i = 0u; i < min(4u, OUT_CHANNELS - column); i++) {
        store_value(image_row, row, column + i, sums[i]);
    }
}

{# Any kernel size: one tap and four input channels a step. #}
{% macro single_taps() %}
    var four = 0u; // of the input channels
    var tap_row = 0u;
    var tap_column = 0u;
    for (var step = 0u; step < STEPS; step++) {
        let x_row = image_row + tap_row - KERNEL_SIZE / 2u;
        let norm = norm_of(four);
        let x_column = row + tap_column - KERNEL_SIZE / 2u;
{% if not aligned %}
        let tap = tap_row * KERNEL_SIZE + tap_column;
        let left = IN_CHANNELS - four * 4u;
{% endif %}
{% for c in range(tile_columns) %}
{% if aligned %}
        let w{{ c }} = load_weights(weight_row{{ c }}, weight_step(step));
{% else %}
        let w{{ c }} = four_weights(weight_row{{ c }} + tap * IN_CHANNELS + four * 4u, left);
{% endif %}
{% endfor %}
{% call(r, v) registers.accumulate(tile_rows, tile_columns, 1) %}
        operand(x_row, x_column + {{ r }}u, four, norm)
{% endcall %}
        // The next four channels, or the first of the next tap.
        let tap_done = four + 1u == TAP_STEPS;
        four = select(four + 1u, 0u, tap_done);
        tap_column += select(0u, 1u, tap_done);
        let line_done = tap_column == KERNEL_SIZE;
        tap_column = select(tap_column, 0u, line_done);
        tap_row += select(0u, 1u, line_done);
    }
{% endmacro %}
{# Kernel size 3: one image row and four input channels a step; each value of x serves three taps. #}
{% macro three_taps() %}
    var four = 0u; // of the input channels
    var tap_row = 0u;
    for (var step = 0u; step < 3u * TAP_STEPS; step++) {
        let x_row = image_row + tap_row - 1u;
        let norm = norm_of(four);
        let x_column = row - 1u;
{% if quads %}
{% for i in range(0, tile_rows + 2, 4) %}
        let quarter{{ i }} = operand(x_row, x_column + {{ i }}u + (index & 3u), four, norm);
{% endfor %}
{% for i in range(tile_rows + 2) %}
        let p{{ i }} = quadBroadcast(quarter{{ i - i % 4 }}, {{ i % 4 }}u);
{% endfor %}
{% else %}
{% for i in range(tile_rows + 2) %}
        let p{{ i }} = operand(x_row, x_column + {{ i }}u, four, norm);
{% endfor %}
{% endif %}
        let weight_first = tap_row * 3u * TAP_STEPS + four;
{% for tap in range(3) %}
        {
{% for c in range(tile_columns) %}
            let w{{ c }} = load_weights(weight_row{{ c }}, weight_step(weight_first + {{ tap }}u * TAP_STEPS));
{% endfor %}
{% call(r, v) registers.accumulate(tile_rows, tile_columns, 1) %}
            p{{ r + tap }}
{% endcall %}
        }
{% endfor %}
        let line_done = four + 1u == TAP_STEPS;
        four = select(four + 1u, 0u, line_done);
        tap_row += select(0u, 1u, line_done);
    }
{% endmacro %}
{{ registers.threads(tile_columns, "OUT_CHANNELS") }}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) index: u32) {
    let tile = thread_tile(group, index);
    let row_tiles = (picture_width() + {{ tile_rows - 1 }}u) / {{ tile_rows }}u;
    let column = tile.x * {{ tile_columns }}u;
    let row = (tile.y % row_tiles) * {{ tile_rows }}u;
    let band_row = tile.y / row_tiles;
    if (column >= OUT_CHANNELS || band_row >= params.rows) {
        return;
    }
    image_row = params.row_first + band_row;
{{ registers.begin(tile_rows, tile_columns, "min(%s, OUT_CHANNELS - 1u)") }}
{% if aligned %}
    if (KERNEL_SIZE == 3u) {
{{ three_taps() }}
    } else {
{{ single_taps() }}
    }
{% else %}
{{ single_taps() }}
{% endif %}
    // Stored by a loop: {{ tile_rows * tile_columns // 4 }} calls, inlined, would take half the time to compile.
    var outputs: array<vec4f, {{ tile_rows * tile_columns // 4 }}>;
{% for r in range(tile_rows) %}
{% for c in range(0, tile_columns, 4) %}
{% set four = (r * tile_columns + c) // 4 %}
    outputs[{{ four }}] = vec4f(sum{{ r }}_{{ c }}, sum{{ r }}_{{ c + 1 }}, sum{{ r }}_{{ c + 2 }}, sum{{ r }}_{{ c + 3 }});
{% endfor %}
{% endfor %}
    for (var i = 0u; i < {{ tile_rows * tile_columns // 4 }}u; i++) {
        store_four(row + i / {{ tile_columns // 4 }}u, column + i % {{ tile_columns // 4 }}u * 4u, outputs[i]);
    }
}
