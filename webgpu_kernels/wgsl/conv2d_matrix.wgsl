enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
diagnostic(off, chromium.subgroup_matrix_uniformity);
{# A workgroup computes `tile_rows` rows of 16 pixels by `tile_columns` output channels, a subgroup `sub_rows` rows by
   `sub_columns` channels; `depth` input channels are staged at once and the weights of `taps` (1, or 3: a row) taps;
   `stages` is the number of buffers that weights go to by turns; `prefetch` says whether the next weights are read into
   registers while the present ones are multiplied. #}
{% set quads = depth // 8 %}
{% set line = quads + 1 %}
{% set area = 18 * (tile_rows + 2) %}
{% set across = tile_columns // sub_columns %}
{% set subgroups = tile_rows // sub_rows * across %}
{% set threads = 32 * subgroups %}
{% set x_jobs = area * quads %}
{% set x_loads = (x_jobs + threads - 1) // threads %}
{% set w_jobs = tile_columns * taps * quads %}
{% set w_loads = (w_jobs + threads - 1) // threads %}
{% set fragment_columns = sub_columns // 16 %}
{% set w_stage = tile_columns * taps * line %}
{% macro own(i, count) %}
{{ "if (thread < %du) " % (count - threads * i) if threads * (i + 1) > count }}
{%- endmacro %}
// y = conv(x, W) + bias, as conv2d.wgsl, on matrix units, of kernels of 3 x 3. Operands are f16, sums f32. A workgroup
// stages {{ depth }} input channels of {{ tile_rows }} rows of 16 pixels and of those around them, normalized once for all taps, then
// the weights of {{ taps }} of the taps at a time. A subgroup of 32 threads multiplies {{ sub_rows }} rows by {{ sub_columns }} output channels.
{{ interface }}
{% include "lib/picture.wgsl" %}

override SLICES: u32 = IN_CHANNELS / {{ depth }}u;
override W_QUADS: u32 = IN_CHANNELS / 8u; // of one tap

alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;

// Lines of {{ quads }} quads (eight input channels, 16 bytes): pixels, 18 a row, then output channels, tap by tap; the one more
// that each line has spreads them over the banks.
var<workgroup> staged: array<vec4u, {{ [area * line + stages * w_stage, subgroups * 4 * sub_columns] | max }}>;

// Beyond the range of f16 a value becomes the greatest, not infinity.
fn pairs(value: vec4f) -> vec2u {
    return bitcast<vec2u>(vec4h(clamp(value, vec4f(-65504.0), vec4f(65504.0))));
}

// Eight channels of what is convolved.
fn quad_of_x(row: u32, column: u32, quad: u32, low: Norm, high: Norm) -> vec4u {
    let four = quad * 2u;
    return vec4u(pairs(operand(row, column, four, low)), pairs(operand(row, column, four + 1u, high)));
}

{% macro fetch(slice, tap) %}
{% for i in range(w_loads) %}
w{{ i }} = weight[w_from{{ i }} + {{ tap }} * W_QUADS + {{ slice }} * {{ quads }}u];
{% endfor %}
{% endmacro %}
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let subgroup = (thread / 32u) & {{ subgroups - 1 }}u;
    let lane = thread % 32u;
    let sub_row = subgroup / {{ across }}u * {{ sub_rows }}u;
    let sub_column = subgroup % {{ across }}u * {{ sub_columns }}u;
    let tiles = (picture_width() + 15u) / 16u;
    let first_row = params.row_first + group.y / tiles * {{ tile_rows }}u;
    let first_column = group.y % tiles * 16u;
    let first_channel = group.x * {{ tile_columns }}u;
    let own_quad = thread % {{ quads }}u;
{% for i in range(w_loads) %}
{# Line by line of the staged weights: the tap among those of a stage, then the channel. #}
    let w_line{{ i }} = (thread + {{ i * threads }}u) / {{ quads }}u;
    let w_to{{ i }} = {{ area * line }}u + w_line{{ i }} * {{ line }}u + own_quad;
    let w_channel{{ i }} = min(first_channel + w_line{{ i }} % {{ tile_columns }}u, OUT_CHANNELS - 1u);
    let w_from{{ i }} = (w_channel{{ i }} * 9u + {{ "min(w_line%d / %du, %du)" % (i, tile_columns, taps - 1) }}) * W_QUADS + own_quad;
    var w{{ i }} = vec4u();
{% endfor %}
{% for r in range(sub_rows) %}
{% for c in range(fragment_columns) %}
    var sum{{ r }}_{{ c }}: Sum;
{% endfor %}
{% endfor %}
{% if prefetch %}
    {{ fetch("0u", "0u") | indent(4) }}
{% endif %}
    for (var slice = 0u; slice < SLICES; slice++) {
        let slice_quad = slice * {{ quads }}u + own_quad;
        let low = norm_of(slice_quad * 2u);
        let high = norm_of(slice_quad * 2u + 1u);
        workgroupBarrier();
{% for i in range(x_loads) %}
        {{ own(i, x_jobs) }}{
            let place = (thread + {{ i * threads }}u) / {{ quads }}u;
            staged[place * {{ line }}u + own_quad] = quad_of_x(first_row - 1u + place / 18u, first_column - 1u + place % 18u, slice_quad, low, high);
        }
{% endfor %}
        for (var tap_row = 0u; tap_row < 3u; tap_row++) {
{% for first in range(0, 3, taps) %}
            {
                let stage = {{ "((slice + tap_row + %du) & 1u) * %du" % (first, w_stage) if stages == 2 else "0u" }};
{% if not prefetch %}
                {{ fetch("slice", "(tap_row * 3u + %du)" % first) | indent(16) }}
{% endif %}
{% if stages == 1 and first %}
                workgroupBarrier();
{% elif stages == 1 %}
                if (tap_row > 0u) {
                    workgroupBarrier();
                }
{% endif %}
{% for i in range(w_loads) %}
                {{ own(i, w_jobs) }}{
                    staged[stage + w_to{{ i }}] = w{{ i }};
                }
{% endfor %}
                workgroupBarrier();
{% if prefetch %}
                // After the last weights others come again, unused.
                let next_tap = {{ "tap_row * 3u + %du" % (first + taps) }};
                let over = next_tap == 9u;
                {{ fetch("min(slice + u32(over), SLICES - 1u)", "select(next_tap, 0u, over)") | indent(16) }}
{% endif %}
                let left_at = (sub_row + tap_row) * {{ 18 * line }}u;
                let right_at = stage + {{ area * line }}u + sub_column * {{ line }}u;
{% for tap in range(taps) %}
{% for k in range(depth // 16) %}
{% set step = tap * (depth // 16) + k %}
{% for c in range(fragment_columns) %}
                let right{{ step }}_{{ c }} = subgroupMatrixLoad<Right, col_major>(&staged, right_at + {{ (tap * tile_columns + c * 16) * line + 2 * k }}u, {{ line }}u);
{% endfor %}
{% for r in range(sub_rows) %}
                let left{{ step }}_{{ r }} = subgroupMatrixLoad<Left, row_major>(&staged, left_at + {{ (18 * r + first + tap) * line + 2 * k }}u, {{ line }}u);
{% for c in range(fragment_columns) %}
                sum{{ r }}_{{ c }} = subgroupMatrixMultiplyAccumulate(left{{ step }}_{{ r }}, right{{ step }}_{{ c }}, sum{{ r }}_{{ c }});
{% endfor %}
{% endfor %}
{% endfor %}
{% endfor %}
            }
{% endfor %}
        }
    }
    // A row of every subgroup's part at a time, through workgroup memory, so that neighbours store neighbouring channels.
    let part = subgroup * {{ 4 * sub_columns }}u;
{% for r in range(sub_rows) %}
    workgroupBarrier();
{% for c in range(fragment_columns) %}
    subgroupMatrixStore<row_major>(&staged, part + {{ 4 * c }}u, sum{{ r }}_{{ c }}, {{ sub_columns // 4 }}u);
{% endfor %}
    workgroupBarrier();
    if (first_row + sub_row + {{ r }}u - params.row_first < params.rows) {
        for (var i = lane; i < {{ 16 * sub_columns }}u; i += 32u) {
            let column = first_column + i / {{ sub_columns }}u;
            let channel = first_channel + sub_column + i % {{ sub_columns }}u;
            if (column < picture_width() && channel < OUT_CHANNELS) {
                store_value(first_row + sub_row + {{ r }}u, column, channel, bitcast<f32>(staged[part + i / 4u][i % 4u]));
            }
        }
    }
{% endfor %}
}
