{{ "enable f16;" if operand == "f16" }}
{# `operand` is what is staged, "f32" or "f16"; `depth` the elements of K staged at once; `threads` a multiple of 128;
   `unroll` the lines of a turn of the inner loop, a divisor of all; tiles are multiples of 64. #}
{% set blocks = depth // 4 %}
{% set rows_down = threads // 16 %}
{% set row_quads = tile_rows // (4 * rows_down) %}
{% set column_quads = tile_columns // 64 %}
{% set x_line = tile_rows // 4 %}
{% set w_line = tile_columns // 4 %}
{% set x_jobs = x_line * blocks %}
{% set jobs = (x_line + w_line) * blocks %}
{% set element = {"f32": "vec4f", "f16": "vec4h"}[operand] %}
{% set vectors = LOAD_VECTORS[weights] %}
{% set half = tile_columns // 2 %}
{% set swiglu = epilogue == "swiglu" %}
// y = x · Wᵀ + bias, and what lib/epilogue.wgsl makes of it, as a sum of outer products, for adapters with workgroup
// memory of their own. {{ threads }} threads share a tile of
// {{ tile_rows }} by {{ tile_columns }}; both operands are staged as {{ operand }}, K first, so that a step of a thread is {{ row_quads + column_quads }} loads for
// {{ 4 * row_quads }} by {{ 4 * column_quads }} sums in named registers.
{{ interface }}
{% include "lib/epilogue.wgsl" %}
{% include "lib/outer_values.wgsl" %}

// Lines of fours of rows and of columns.
var<workgroup> staged_x: array<{{ element }}, {{ depth * x_line }}>;
var<workgroup> staged_w: array<{{ element }}, {{ depth * w_line }}>;

{% include "lib/store_four.wgsl" %}

{# The jobs of a thread: one is four rows of x or of W by four lines. Eight neighbours take neighbouring rows, so that
   their stores lie side by side, and the next eight the next lines of these rows. #}
{% set job_count = (jobs + threads - 1) // threads %}
{% macro place(i) %}
    let job{{ i }} = {{ "thread + %du" % (threads * i) }};
    let is_x{{ i }} = job{{ i }} < {{ x_jobs }}u;
    let own{{ i }} = job{{ i }} - select({{ x_jobs }}u, 0u, is_x{{ i }});
    let block{{ i }} = own{{ i }} / 8u % {{ blocks }}u;
    let four{{ i }} = own{{ i }} / {{ 8 * blocks }}u * 8u + own{{ i }} % 8u;
    var r{{ i }} = Raw();
{% endmacro %}
{% macro either(i, x, w) %}
{% if threads * (i + 1) <= x_jobs %}
        {{ x }}
{% elif threads * i >= x_jobs and threads * (i + 1) <= jobs %}
        {{ w }}
{% else %}
        if (is_x{{ i }}) {
            {{ x }}
        } else {{ "if (job%d < %du) " % (i, jobs) if threads * (i + 1) > jobs }}{
            {{ w }}
        }
{% endif %}
{% endmacro %}
{% macro fetch(step) %}
{% for i in range(job_count) %}
{{ either(i, "r%d = fetch_x(first_row + four%d * 4u, %s * %du + block%d);" % (i, i, step, blocks, i),
          "r%d = fetch_w(first_column + four%d * 4u, %s * %du + block%d);" % (i, i, step, blocks, i)) -}}
{% endfor %}
{% endmacro %}
{% macro put(array, line, kind, i) -%}
{% for j in range(4) %}
{{ array }}[(block{{ i }} * 4u + {{ j }}u) * {{ line }}u + four{{ i }}] = {{ kind }}{{ j }}(r{{ i }});
{% endfor %}
{%- endmacro %}
{% macro slice() %}
{% for i in range(job_count) %}
{{ either(i, put("staged_x", x_line, "line_of_x", i), put("staged_w", w_line, "line_of_w", i)) -}}
{% endfor %}
        workgroupBarrier();
        // The next slice of K comes while this one is multiplied; after the last one it comes again, unused.
        let next = min(step + 1u, STEPS - 1u);
{{ fetch("next") -}}
        for (var turn = 0u; turn < {{ "turns" if 1 < unroll < depth else "%du" % (depth // unroll) }}; turn++) {
            let line = {{ "turn %% %du * %d" % (depth // unroll, unroll) if 1 < unroll < depth else "turn * %d" % unroll }}u; // a range that the browser knows: it checks no load below
{% for u in range(unroll) %}
            {
{% for q in range(row_quads) %}
            let x{{ q }} = {{ "vec4f" if operand == "f16" }}(staged_x[(line + {{ u }}u) * {{ x_line }}u + {{ rows_down * q }}u + down]);
{% endfor %}
{% for q in range(column_quads) %}
            let w{{ q }} = {{ "vec4f" if operand == "f16" }}(staged_w[(line + {{ u }}u) * {{ w_line }}u + {{ 16 * q }}u + across]);
{% endfor %}
{% for r in range(4 * row_quads) %}
{% for q in range(column_quads) %}
{% set value = "x%d.%s" % (r // 4, "xyzw"[r % 4]) %}
            sum{{ r }}_{{ q }} += {{ value }} * w{{ q }};
{% endfor %}
{% endfor %}
            }
{% endfor %}
        }
        workgroupBarrier();
{% endmacro %}
// At most four rows: a thread a column wastes less than a tile.
fn few_sums(row: u32) -> vec4f {
    let weight_row = weight_row(row);
{% for r in range(4) %}
    let x_row{{ r }} = x_row({{ r }}u);
{% endfor %}
    var sums = vec4f();
    for (var step = 0u; step * {{ 4 * vectors }}u < K; step++) {
        let w = load_weights(weight_row, weight_step(step));
{% for v in range(vectors) %}
        let four{{ v }} = step * {{ vectors }}u + {{ v }}u;
        sums += vec4f(
{% for r in range(4) %}
            dot(load_x(x_row{{ r }}, four{{ v }}), w{{ "[%d]" % v if vectors > 1 }}),
{% endfor %}
        );
{% endfor %}
    }
    return sums;
}

fn few_rows(column: u32) {
{% if swiglu %}
    let gates = few_sums(column);
    let ups = few_sums(N + column);
{% else %}
    let sums = few_sums(column);
{% endif %}
    for (var row = 0u; row < params.rows; row++) {
        let value = finished(row, column, {{ "gates[row], ups[row]" if swiglu else "sums[row]" }});
        y[params.y_offset + row * params.y_stride + column] = value;
    }
}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.y * {{ tile_rows }}u;
    let first_column = group.x * {{ tile_columns }}u;
    if (params.rows <= 4u) {
        let column = y_column(first_column) + thread;
        if (thread < {{ half if swiglu else tile_columns }}u && column < N) {
            few_rows(column);
        }
        return;
    }
{% if 1 < unroll < depth %}
    // A number that the compiler does not know, so that it unrolls no further: registers would not suffice.
    let turns = select({{ depth // unroll }}u, 0u, params.rows == 0u);
{% endif %}
    // 32 threads in a row take 8 by 4 places. Of neighbours, and of those two apart, one address is the same.
    let across = thread / 32u % 2u * 8u + thread / 2u % 8u;
    let down = thread / 64u * 4u + thread / 16u % 2u * 2u + thread % 2u;
{% for i in range(job_count) %}
{{ place(i) -}}
{% endfor %}
{% for r in range(4 * row_quads) %}
{% for q in range(column_quads) %}
    var sum{{ r }}_{{ q }} = vec4f();
{% endfor %}
{% endfor %}
{{ fetch("0u") -}}
    for (var step = 0u; step < STEPS; step++) {
{{ slice() -}}
    }
{% for r in range(4 * row_quads) %}
{% for q in range(column_quads // 2 if swiglu else column_quads) %}
    store_four(first_row + {{ 4 * rows_down * (r // 4) + r % 4 }}u + down * 4u, y_column(first_column + {{ 64 * q }}u + across * 4u), sum{{ r }}_{{ q }}{{ ", sum%d_%d" % (r, q + column_quads // 2) if swiglu }});
{% endfor %}
{% endfor %}
}
