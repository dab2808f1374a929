requires packed_4x8_integer_dot_product;
{# `depth` are the elements of K staged at once, `tile_rows` x `tile_columns` what a workgroup computes, a thread 8 x 8 of it;
   powers of two, `tile_rows` of at least 64, `tile_columns` at least as many, and no more than there are threads. #}
{% set parts = depth // 16 %}
{% set threads = tile_rows * tile_columns // 64 %}
{% set rows_down = tile_rows // 8 %}
{% set columns_across = tile_columns // 8 %}
{% set x_line = tile_rows // 4 %}
{% set w_line = tile_columns // 4 %}
{% set staged_lines = threads // parts %}
{% set x_loads = tile_rows // staged_lines %}
{% set w_loads = tile_columns // staged_lines %}
{% set half = tile_columns // 2 %}
{% set swiglu = epilogue == "swiglu" %}
// y = x · Wᵀ + bias, and what lib/epilogue.wgsl makes of it, by dot products of four int8 each, i32 sums over all of K.
// x comes with a scale a row, W is rounded to a scale a row as it is unpacked. {{ threads }} threads share a tile of {{ tile_rows }} by
// {{ tile_columns }}; each has 8 by 8 sums in named registers.
{{ interface }}
override STEPS: u32 = K / {{ depth }}u;
{% include "lib/epilogue.wgsl" %}
{% include "lib/sixteen.wgsl" %}
{% include "lib/row_codes.wgsl" %}

// Lines of four of K (a word) by fours of rows and of columns. A thread stages sixteen of K, a part, of one row or column;
// fours take turns by part, so that threads that store side by side meet different banks.
var<workgroup> staged_x: array<vec4u, {{ 4 * parts * x_line }}>;
var<workgroup> staged_w: array<vec4u, {{ 4 * parts * w_line }}>;

{% include "lib/store_four.wgsl" %}

{% macro fetch(step) %}
{% for i in range(x_loads) %}
        x{{ i }} = x[x_from{{ i }} + {{ step }} * {{ parts }}u];
{% endfor %}
{% for i in range(w_loads) %}
        packed{{ i }} = load_sixteen(column{{ i }}, {{ step }} * {{ parts }}u + part);
        bits{{ i }} = scale_bits(column{{ i }}, {{ step }} * {{ parts }}u + part);
{% endfor %}
{% endmacro %}
{% macro place(width, i) -%}
part * {{ 4 * width }}u + (((line + {{ staged_lines * i }}u) / 4u) ^ (2u * part)) % {{ width }}u
{%- endmacro %}
// What a thread keeps of its columns' scales passes through the place of W before the first slice and after the last.
fn share_scale(thread: u32, scale: f32) {
    workgroupBarrier();
    if (thread < {{ tile_columns }}u) {
        staged_w[thread / 4u][thread % 4u] = bitcast<u32>(scale);
    }
    workgroupBarrier();
}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.y * {{ tile_rows }}u;
    let first_column = group.x * {{ tile_columns }}u;
    // 32 threads in a row take 8 by 4 places. Of neighbours, and of those two apart, one address is the same.
    let across = thread / 32u % {{ columns_across // 8 }}u * 8u + thread / 2u % 8u;
    let down = thread / {{ 4 * columns_across }}u * 4u + thread / 16u % 2u * 2u + thread % 2u;
    let part = thread % {{ parts }}u;
    let line = thread / {{ parts }}u;
    // A number that the compiler does not know, so that it unrolls no further: registers would not suffice.
    let parts = select({{ parts }}u, 0u, params.rows == 0u);
    var scale = 0.0;
    if (thread < {{ tile_columns }}u) {
        scale = greatest(w_row(first_column + thread)) / 127.0;
    }
    share_scale(thread, scale);
{% for i in range(x_loads) %}
    let x_from{{ i }} = min(first_row + line + {{ staged_lines * i }}u, params.rows - 1u) * SIXTEENS + part;
    let x_to{{ i }} = {{ place(x_line, i) }};
    var x{{ i }} = vec4u();
{% endfor %}
{% for i in range(w_loads) %}
    let column{{ i }} = w_row(first_column + line + {{ staged_lines * i }}u);
    let w_to{{ i }} = {{ place(w_line, i) }};
    let to_code{{ i }} = 1.0 / bitcast<f32>(staged_w[(line + {{ staged_lines * i }}u) / 4u][line % 4u]);
    var packed{{ i }} = Sixteen();
    var bits{{ i }} = 0u;
{% endfor %}
{% for r in range(8) %}
{% for q in range(2) %}
    var sum{{ r }}_{{ q }} = vec4i();
{% endfor %}
{% endfor %}
{{ fetch("0u") }}
    workgroupBarrier();
    for (var step = 0u; step < STEPS; step++) {
{% for i in range(x_loads) %}
{% for j in range(4) %}
        staged_x[x_to{{ i }} + {{ j * x_line }}u][line % 4u] = x{{ i }}.{{ "xyzw"[j] }};
{% endfor %}
{% endfor %}
{% for i in range(w_loads) %}
        let codes{{ i }} = bytes_of(packed{{ i }}, bits{{ i }}, to_code{{ i }});
{% for j in range(4) %}
        staged_w[w_to{{ i }} + {{ j * w_line }}u][line % 4u] = codes{{ i }}.{{ "xyzw"[j] }};
{% endfor %}
{% endfor %}
        workgroupBarrier();
        // The next slice of K comes while this one is multiplied; after the last one it comes again, unused.
        let next = min(step + 1u, STEPS - 1u);
{{ fetch("next") }}
        for (var turn = 0u; turn < parts; turn++) {
            let now = turn % {{ parts }}u; // a range that the browser knows: it checks no load below
            let x_at = now * {{ 4 * x_line }}u + (down ^ (2u * now)) % {{ rows_down }}u;
            let w_at = now * {{ 4 * w_line }}u + (across ^ (2u * now)) % {{ columns_across }}u;
{% for pair in range(2) %}
            {
{% for p in range(2) %}
{% for q in range(2) %}
            let x{{ q }}_{{ p }} = staged_x[x_at + {{ (2 * pair + p) * x_line + rows_down * q }}u];
{% endfor %}
{% for q in range(2) %}
            let w{{ q }}_{{ p }} = staged_w[w_at + {{ (2 * pair + p) * w_line + columns_across * q }}u];
{% endfor %}
{% endfor %}
{% for r in range(8) %}
{% for q in range(2) %}
            sum{{ r }}_{{ q }} += vec4i(
{% for i in range(4) %}
                dot4I8Packed(x{{ r // 4 }}_0.{{ "xyzw"[r % 4] }}, w{{ q }}_0.{{ "xyzw"[i] }}) + dot4I8Packed(x{{ r // 4 }}_1.{{ "xyzw"[r % 4] }}, w{{ q }}_1.{{ "xyzw"[i] }}),
{% endfor %}
            );
{% endfor %}
{% endfor %}
            }
{% endfor %}
        }
        workgroupBarrier();
    }
    share_scale(thread, scale);
{% for q in range(2) %}
    let scales{{ q }} = bitcast<vec4f>(staged_w[across + {{ columns_across * q }}u]);
{% endfor %}
{% for r in range(8) %}
    let row{{ r }} = first_row + {{ 4 * rows_down * (r // 4) + r % 4 }}u + down * 4u;
    let x_scale{{ r }} = x_scales[min(row{{ r }}, params.rows - 1u)].x;
{% if swiglu %}
    store_four(row{{ r }}, y_column(first_column + across * 4u), vec4f(sum{{ r }}_0) * (x_scale{{ r }} * scales0), vec4f(sum{{ r }}_1) * (x_scale{{ r }} * scales1));
{% else %}
{% for q in range(2) %}
    store_four(row{{ r }}, first_column + {{ 4 * columns_across * q }}u + across * 4u, vec4f(sum{{ r }}_{{ q }}) * (x_scale{{ r }} * scales{{ q }}));
{% endfor %}
{% endif %}
{% endfor %}
}
