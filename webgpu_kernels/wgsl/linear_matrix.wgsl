{{ "enable f16;" if operand == "f16" }}
enable subgroups;
enable chromium_experimental_subgroup_matrix;
{{ "requires packed_4x8_integer_dot_product;" if operand == "int8" }}
diagnostic(off, chromium.subgroup_matrix_uniformity);
{# `operand` is what x was converted to, "f16" or "int8"; `groups` says whether that has a scale a row and 128 columns, and
   sums leave the matrices once a group to be scaled, or a scale a row, and W is rounded to a scale a row too; `depth` the elements of K staged at once;
   `sub_rows` x `sub_columns` what a subgroup computes. #}
{% set fragment_k = 16 if operand == "f16" else 32 %}
{% set quad = 8 if operand == "f16" else 16 %}
{% set quads = depth // quad %}
{% set line = quads + 1 %}
{% set across = tile_columns // sub_columns %}
{% set threads = tile_rows // sub_rows * across * 32 %}
{% set x_jobs = tile_rows * quads %}
{% set w_jobs = tile_columns * (depth // 16) %}
{% set x_loads = (x_jobs + threads - 1) // threads %}
{% set w_loads = (w_jobs + threads - 1) // threads %}
{% macro own(i, count) %}
{{ "if (thread < %du) " % (count - threads * i) if threads * (i + 1) > count }}
{%- endmacro %}
{% set fragment_rows = sub_rows // 16 %}
{% set fragment_columns = sub_columns // 16 %}
{% set sum_type = "f32" if operand == "f16" else "i32" %}
{% set dense = weights == "f16" %}
{% set affine = weights in ("int4", "int8") %}
{% set subgroups = threads // 32 %}
{% set band = 4 * sub_columns %}
{% set size = [(tile_rows + tile_columns) * line, subgroups * band] | max %}
{% set bands = [fragment_rows, size // (subgroups * band)] | min %}
{% set input = "f16" if operand == "f16" else "i8" %}
{% set half = sub_columns // 2 %}
{% set swiglu = epilogue == "swiglu" %}
// y = x · Wᵀ + bias, and what lib/epilogue.wgsl makes of it, on matrix units.
// Operands are {{ operand }}, sums {{ sum_type }}: x converted before, W unpacked into
// workgroup memory. A subgroup of 32 threads computes {{ sub_rows }} rows by {{ sub_columns }} columns of a tile of {{ tile_rows }} by {{ tile_columns }}.
{{ interface }}
override STEPS: u32 = K / {{ depth }}u;
override X_QUADS: u32 = K / {{ quad }}u;
{% include "lib/epilogue.wgsl" %}
{% include "lib/sixteen.wgsl" %}

alias Left = subgroup_matrix_left<{{ input }}, {{ fragment_k }}, 16>;
alias Right = subgroup_matrix_right<{{ input }}, 16, {{ fragment_k }}>;
alias Sum = subgroup_matrix_result<{{ sum_type }}, 16, 16>;

// Lines of {{ quads }} quads (16 bytes) of K, rows of x before rows of W; the one more that each has spreads them over the banks.
var<workgroup> staged: array<vec4u, {{ size }}>;
{% if groups %}
override FLUSH: u32 = min(GROUP, 128u); // columns of x and W that share their scales

// Codes as they are stored, of int8 less 128, and of binary and ternary as signs.
fn bytes_of(packed: Sixteen) -> vec4u {
{% if weights == "binary" %}
    return (~spread_bits(packed) & vec4u(0x1010101u)) * vec4u(0xfeu) + vec4u(0x1010101u);
{% elif weights == "ternary" %}
    return ((spread_codes(packed) | vec4u(0x80808080u)) - vec4u(0x1010101u)) ^ vec4u(0x80808080u);
{% elif weights == "int4" %}
    return spread_codes(packed);
{% else %}
    return packed ^ vec4u(0x80808080u);
{% endif %}
}

// Scale and offset of a group of a column.
fn group_scale(column: u32, group: u32) -> vec2f {
    let index = w_row(column) * GROUPS + group;
    let scale = unpack2x16float(half_bits(scales[index / 2u], index)).x;
{% if affine %}
    let offset = unpack2x16float(half_bits(offsets[index / 2u], index)).x;
    return vec2f(scale, offset{{ " + 128.0 * scale" if weights == "int8" }});
{% else %}
    return vec2f(scale, 0.0);
{% endif %}
}
{% elif operand == "int8" %}
var<workgroup> column_scales: array<f32, {{ tile_columns }}>;
{% include "lib/row_codes.wgsl" %}
{% endif %}

{% include "lib/store_four.wgsl" %}
{% if swiglu or not groups %}

// Four sums of a row, from column `line` of the tile on, as they lie in workgroup memory: times their scales.
fn scaled(row: u32, line: u32, bits: vec4u) -> vec4f {
{% if operand == "int8" and not groups %}
    let column_scale = vec4f({% for i in range(4) %}column_scales[line + {{ i }}u]{{ ", " if i < 3 }}{% endfor %});
    return vec4f(bitcast<vec4i>(bits)) * (x_scales[min(row, params.rows - 1u)].x * column_scale);
{% else %}
    return bitcast<vec4f>(bits);
{% endif %}
}
{% endif %}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.y * {{ tile_rows }}u;
    let first_column = group.x * {{ tile_columns }}u;
    let subgroup = thread / 32u; // plain, so that the browser knows its range and drops the checks of matrix loads
    let lane = thread % 32u;
    let sub_row = subgroup / {{ across }}u * {{ sub_rows }}u;
    let sub_column = subgroup % {{ across }}u * {{ sub_columns }}u;
{% for i in range(x_loads) %}
    let x_line{{ i }} = (thread + {{ i * threads }}u) / {{ quads }}u;
    let x_quad{{ i }} = (thread + {{ i * threads }}u) % {{ quads }}u;
    let x_from{{ i }} = min(first_row + x_line{{ i }}, params.rows - 1u) * X_QUADS + x_quad{{ i }};
    let x_to{{ i }} = x_line{{ i }} * {{ line }}u + x_quad{{ i }};
{% endfor %}
{% for i in range(w_loads) %}
    let w_line{{ i }} = (thread + {{ i * threads }}u) / {{ depth // 16 }}u;
    let w_part{{ i }} = (thread + {{ i * threads }}u) % {{ depth // 16 }}u;
    let w_column{{ i }} = w_row(first_column + w_line{{ i }});
    let w_to{{ i }} = ({{ tile_rows }}u + w_line{{ i }}) * {{ line }}u + w_part{{ i }} * {{ 16 // quad }}u;
{% endfor %}
{% if operand == "int8" and not groups %}
    for (var line = thread; line < {{ tile_columns }}u; line += {{ threads }}u) {
        column_scales[line] = greatest(w_row(first_column + line)) / 127.0;
    }
    workgroupBarrier();
{% for i in range(w_loads) %}
    let to_code{{ i }} = 1.0 / column_scales[{{ "min(w_line%d, %du)" % (i, tile_columns - 1) if threads * (i + 1) > w_jobs else "w_line%d" % i }}];
{% endfor %}
{% endif %}
{% for r in range(fragment_rows) %}
{% for c in range(fragment_columns) %}
    var sum{{ r }}_{{ c }}: Sum;
{% endfor %}
{% if groups %}
{% for j in range(sub_columns // 8) %}
    var total{{ r }}_{{ j }} = vec4f();
{% endfor %}
{% endif %}
{% endfor %}
{% if groups %}
    // What of sixteen rows by {{ sub_columns }} columns a thread scales: four columns, every {{ 128 // sub_columns }}th row.
    let own_column = first_column + sub_column + lane % {{ sub_columns // 4 }}u * 4u;
    let own_row = first_row + sub_row + lane / {{ sub_columns // 4 }}u;
    let own_part = subgroup * {{ bands * band }}u + lane;
{% endif %}
    for (var step = 0u; step < STEPS; step++) {
{% for i in range(x_loads) %}
        {{ own(i, x_jobs) }}{
            staged[x_to{{ i }}] = x[x_from{{ i }} + step * {{ quads }}u];
        }
{% endfor %}
{% for i in range(w_loads) %}
        {{ own(i, w_jobs) }}{
            let part = step * {{ depth // 16 }}u + w_part{{ i }};
            let packed = load_sixteen(w_column{{ i }}, part);
{% if operand == "f16" %}
            let pairs = pairs_of(packed{{ ", scale_bits(w_column%d, part)" % i if not dense }});
            staged[w_to{{ i }}] = pairs.a;
            staged[w_to{{ i }} + 1u] = pairs.b;
{% else %}
            staged[w_to{{ i }}] = bytes_of(packed{{ ", scale_bits(w_column%d, part), to_code%d" % (i, i) if not groups }});
{% endif %}
        }
{% endfor %}
        workgroupBarrier();
        let left_at = sub_row * {{ line }}u;
        let right_at = ({{ tile_rows }}u + sub_column) * {{ line }}u;
{% for k in range(depth // fragment_k) %}
{% set at = k * fragment_k // quad %}
{% for c in range(fragment_columns) %}
        let right{{ k }}_{{ c }} = subgroupMatrixLoad<Right, col_major>(&staged, right_at + {{ c * 16 * line + at }}u, {{ line }}u);
{% endfor %}
{% for r in range(fragment_rows) %}
        let left{{ k }}_{{ r }} = subgroupMatrixLoad<Left, row_major>(&staged, left_at + {{ r * 16 * line + at }}u, {{ line }}u);
{% for c in range(fragment_columns) %}
        sum{{ r }}_{{ c }} = subgroupMatrixMultiplyAccumulate(left{{ k }}_{{ r }}, right{{ k }}_{{ c }}, sum{{ r }}_{{ c }});
{% endfor %}
{% endfor %}
{% endfor %}
{% if groups %}
        if ((step + 1u) * {{ depth }}u % FLUSH == 0u) {
            let k = step * {{ depth }}u;
{% for i in range(4) %}
            let pair{{ i }} = group_scale(own_column + {{ i }}u, k / GROUP);
{% endfor %}
            let scale = vec4f(pair0.x, pair1.x, pair2.x, pair3.x);
{% if affine %}
            let offset = vec4f(pair0.y, pair1.y, pair2.y, pair3.y);
{% endif %}
{% for first in range(0, fragment_rows, bands) %}
            workgroupBarrier();
{% for r in range(first, [first + bands, fragment_rows] | min) %}
{% for c in range(fragment_columns) %}
            subgroupMatrixStore<row_major>(&staged, subgroup * {{ bands * band }}u + {{ (r - first) * band + 4 * c }}u, sum{{ r }}_{{ c }}, {{ sub_columns // 4 }}u);
            sum{{ r }}_{{ c }} = Sum();
{% endfor %}
{% endfor %}
            workgroupBarrier();
{% for r in range(first, [first + bands, fragment_rows] | min) %}
{% for j in range(sub_columns // 8) %}
            let x_scale{{ r }}_{{ j }} = x_scales[min(own_row + {{ 16 * r + j * (128 // sub_columns) }}u, params.rows - 1u) * (K / 128u) + k / 128u];
            total{{ r }}_{{ j }} += vec4f(bitcast<vec4i>(staged[own_part + {{ (r - first) * band + 32 * j }}u])) * (x_scale{{ r }}_{{ j }}.x * scale){{ " + x_scale%d_%d.y * offset" % (r, j) if affine }};
{% endfor %}
{% endfor %}
{% endfor %}
            workgroupBarrier();
        } else {
            workgroupBarrier();
        }
{% else %}
        workgroupBarrier();
{% endif %}
    }
{% if groups and not swiglu %}
{% for r in range(fragment_rows) %}
{% for j in range(sub_columns // 8) %}
    store_four(own_row + {{ 16 * r + j * (128 // sub_columns) }}u, own_column, total{{ r }}_{{ j }});
{% endfor %}
{% endfor %}
{% else %}
{% set four = sub_columns // 4 %}
    // Sixteen rows of every subgroup's part at a time, through workgroup memory.
    let part = subgroup * {{ 16 * four }}u;
{% for r in range(fragment_rows) %}
    workgroupBarrier();
{% if groups %}
{% for j in range(four // 2) %}
    staged[part + {{ 32 * j }}u + lane] = bitcast<vec4u>(total{{ r }}_{{ j }});
{% endfor %}
{% else %}
{% for c in range(fragment_columns) %}
    subgroupMatrixStore<row_major>(&staged, part + {{ 4 * c }}u, sum{{ r }}_{{ c }}, {{ four }}u);
{% endfor %}
{% endif %}
    workgroupBarrier();
{% set fours = four // 2 if swiglu else four %}
    for (var i = lane; i < {{ 16 * fours }}u; i += 32u) {
        let row = first_row + sub_row + {{ 16 * r }}u + i / {{ fours }}u;
        let four = i % {{ fours }}u;
        let at = part + i / {{ fours }}u * {{ four }}u + four;
        let line = sub_column + four * 4u;
{% if swiglu %}
        store_four(row, y_column(first_column + line), scaled(row, line, staged[at]), scaled(row, line + {{ half }}u, staged[at + {{ fours }}u]));
{% else %}
        store_four(row, first_column + line, scaled(row, line, staged[at]));
{% endif %}
    }
{% endfor %}
{% endif %}
}
