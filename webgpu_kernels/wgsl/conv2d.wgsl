// y = conv(x, W) + bias with stride 1 and zero padding KERNEL_SIZE / 2, as an implicit matrix product.
// x: f32[height, width, IN_CHANNELS]; W: [OUT_CHANNELS, KERNEL_SIZE, KERNEL_SIZE, IN_CHANNELS], f16 in pairs
// or f32; y: f32[height, width, OUT_CHANNELS].
// Each thread owns {{ tile_rows }} neighbouring pixels of one image row by {{ tile_columns }} output channels.
{% import "lib/tile.wgsl" as registers %}
{{ interface }}
override K: u32 = KERNEL_SIZE * KERNEL_SIZE * IN_CHANNELS;
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}
override TAP_STEPS: u32 = (IN_CHANNELS + 3u) / 4u;
override STEPS: u32 = KERNEL_SIZE * KERNEL_SIZE * TAP_STEPS;

override PIXEL: u32 = {{ "TAP_STEPS" if aligned else "IN_CHANNELS" }}; // distance of pixels in x: of fours if aligned

// Four channels of x from index `first`, of which `left` exist; zero outside the image.
fn load_x(inside: bool, first: u32, left: u32) -> vec4f {
{% if aligned %}
    return select(vec4f(), x[first], inside);
{% else %}
    return vec4f(
        select(0.0, x[first], inside),
        select(0.0, x[first + 1u], inside && left > 1u),
        select(0.0, x[first + 2u], inside && left > 2u),
        select(0.0, x[first + 3u], inside && left > 3u),
    );
{% endif %}
}

var<private> image_row: u32;

fn store_four(row: u32, column: u32, sums: vec4f) {
    if (row >= params.width || column >= OUT_CHANNELS) {
        return;
    }
    let first = params.y_offset + (image_row * params.width + row) * OUT_CHANNELS + column;
    for (var i = 0u; i < min(4u, OUT_CHANNELS - column); i++) {
        y[first + i] = sums[i]{{ " + bias[column + i]" if bias }};
    }
}

{# Any kernel size: one tap and four input channels a step. #}
{% macro single_taps() %}
    var four = 0u; // of the input channels
    var tap_row = 0u;
    var tap_column = 0u;
    for (var step = 0u; step < STEPS; step++) {
        // Coordinates left of or above the image wrap round to huge numbers, so one comparison checks both ends.
        let x_row = image_row + tap_row - KERNEL_SIZE / 2u;
        let x_column = row + tap_column - KERNEL_SIZE / 2u;
        let row_inside = x_row < params.height;
        let first = x_first + (x_row * params.width + x_column) * PIXEL + four{{ " * 4u" if not aligned }};
        let left = IN_CHANNELS - four * 4u;
{% for c in range(tile_columns) %}
{% if aligned %}
        let w{{ c }} = load_weights(weight_row{{ c }}, weight_step(step));
{% else %}
        let w{{ c }} = four_weights(weight_row{{ c }} + (tap_row * KERNEL_SIZE + tap_column) * IN_CHANNELS + four * 4u, left);
{% endif %}
{% endfor %}
{% call(r, v) registers.accumulate(tile_rows, tile_columns, 1) %}
        load_x(row_inside && x_column + {{ r }}u < params.width, first + {{ r }}u * PIXEL, left)
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
        // Coordinates left of or above the image wrap round to huge numbers, so one comparison checks both ends.
        let x_row = image_row + tap_row - 1u;
        let x_column = row - 1u;
        let row_inside = x_row < params.height;
        let first = x_first + (x_row * params.width + x_column) * PIXEL + four;
{% for i in range(tile_rows + 2) %}
        let p{{ i }} = load_x(row_inside && x_column + {{ i }}u < params.width, first + {{ i }}u * PIXEL, 4u);
{% endfor %}
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
    let row_tiles = (params.width + {{ tile_rows - 1 }}u) / {{ tile_rows }}u;
    let column = tile.x * {{ tile_columns }}u;
    let row = (tile.y % row_tiles) * {{ tile_rows }}u;
    image_row = tile.y / row_tiles;
    if (column >= OUT_CHANNELS || image_row >= params.height) {
        return;
    }
{{ registers.begin(tile_rows, tile_columns, "OUT_CHANNELS") }}
    let x_first = params.x_offset{{ " / 4u" if aligned }};
{% if aligned %}
    if (KERNEL_SIZE == 3u) {
{{ three_taps() }}
    } else {
{{ single_taps() }}
    }
{% else %}
{{ single_taps() }}
{% endif %}
{{ registers.end(tile_rows, tile_columns) }}
}
