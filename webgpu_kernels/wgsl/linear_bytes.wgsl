requires packed_4x8_integer_dot_product;
{# A workgroup computes `tile_rows` rows, a tile of the operand type int8_tiles, by `tile_columns` columns, as many as it
   has threads; `depth` elements of K are staged at once. #}
{% set threads = tile_columns %}
{% set rows_down = tile_rows // 8 %}
{% set columns_across = tile_columns // 8 %}
{% set x_line = tile_rows // 4 %}
{% set w_line = tile_columns // 4 %}
{% set lines = depth // 4 %}
{% set sixteens = depth // 16 %}
{% set x_loads = lines * x_line // threads %}
{% set half = tile_columns // 2 %}
{% set swiglu = epilogue == "swiglu" %}
{% set affine = weights in ("int4", "int8") %}
{% set longer = True %}
// y = x · Wᵀ + bias, and what lib/epilogue.wgsl makes of it, by dot products of four int8 each, i32 sums over all of K.
// x comes as codes with a scale a row, in tiles of {{ tile_rows }} rows (quantize_tiles.wgsl), W is rounded to a scale a row as it is
// unpacked. {{ threads }} threads share a tile of {{ tile_rows }} by {{ tile_columns }}; each has 8 by 8 sums in named registers.
{{ interface }}
override STEPS: u32 = K / {{ depth }}u;
{% include "lib/epilogue.wgsl" %}
{% include "lib/sixteen.wgsl" %}
{% include "lib/row_codes.wgsl" %}

// Lines of equal four of K by fours of rows and of columns. x is copied as it comes; of W a thread has a column.
var<workgroup> staged_x: array<vec4u, {{ lines * x_line }}>;
var<workgroup> staged_w: array<vec4u, {{ lines * w_line }}>;

{% include "lib/store_four.wgsl" %}

{# Where groups are whole slices the first scale serves all; GROUP is known when the shader is compiled. #}
{% macro fetch(step) %}
{% if not affine %}
        packed = codes[column * (K / {{ depth }}u) + {{ step }}];
{% endif %}
        bits0 = scale_bits(column, {{ step }} * {{ sixteens }}u);
{% for i in range(1, sixteens) %}
        bits{{ i }} = select(scale_bits(column, {{ step }} * {{ sixteens }}u + {{ i }}u), bits0, GROUP % {{ depth }}u == 0u);
{% endfor %}
{% for i in range(sixteens if affine else 0) %}
        packed{{ i }} = load_sixteen(column, {{ step }} * {{ sixteens }}u + {{ i }}u);
{% endfor %}
{% endmacro %}
{% macro sixteen(i) -%}
{% if affine %}packed{{ i }}{% elif weights == "binary" %}packed.{{ "xy"[i // 2] }}{{ " >> 16u" if i % 2 }}{% else %}packed.{{ "xyzw"[i] }}{% endif %}
{%- endmacro %}
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let first_column = group.x * {{ tile_columns }}u;
    // 32 threads in a row take 8 by 4 places. Of neighbours, and of those two apart, one address is the same.
    let across = thread / 32u % {{ columns_across // 8 }}u * 8u + thread / 2u % 8u;
    let down = thread / {{ 4 * columns_across }}u * 4u + thread / 16u % 2u * 2u + thread % 2u;
    let x_from = group.y * (K / 4u) * {{ x_line }}u + thread;
    let column = w_row(first_column + thread);
    let scale = greatest(column) / 127.0;
    let to_code = 1.0 / scale;
{% if affine %}
{% for i in range(sixteens) %}
    var packed{{ i }} = Sixteen();
{% endfor %}
{% else %}
    var packed = {{ "vec2u" if weights == "binary" else "vec4u" }}();
{% endif %}
{% for i in range(sixteens) %}
    var bits{{ i }} = 0u;
{% endfor %}
{% for r in range(8) %}
{% for q in range(2) %}
    var sum{{ r }}_{{ q }} = vec4i();
{% endfor %}
{% endfor %}
{{ fetch("0u") }}
    for (var step = 0u; step < STEPS; step++) {
        workgroupBarrier();
{% for i in range(x_loads) %}
        staged_x[thread + {{ threads * i }}u] = x[x_from + step * {{ lines * x_line }}u + {{ threads * i }}u];
{% endfor %}
{% for i in range(sixteens) %}
        let codes{{ i }} = bytes_of({{ sixteen(i) }}, bits{{ i }}, to_code);
{% for j in range(4) %}
        staged_w[{{ (4 * i + j) * w_line }}u + thread / 4u][thread % 4u] = codes{{ i }}.{{ "xyzw"[j] }};
{% endfor %}
{% endfor %}
        workgroupBarrier();
        // The next slice of W comes while this one is multiplied; after the last one it comes again, unused.
        let next = min(step + 1u, STEPS - 1u);
{{ fetch("next") }}
{% for line in range(0, lines, 2) %}
        {
{% for p in range(2) %}
{% for q in range(2) %}
            let x{{ q }}_{{ p }} = staged_x[down + {{ (line + p) * x_line + rows_down * q }}u];
{% endfor %}
{% for q in range(2) %}
            let w{{ q }}_{{ p }} = staged_w[across + {{ (line + p) * w_line + columns_across * q }}u];
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
    // The columns' scales go to the threads that store them, through the place of W.
    workgroupBarrier();
    staged_w[thread / 4u][thread % 4u] = bitcast<u32>(scale);
    workgroupBarrier();
{% for q in range(2) %}
    let scales{{ q }} = bitcast<vec4f>(staged_w[across + {{ columns_across * q }}u]);
{% endfor %}
{% for r in range(8) %}
    let row{{ r }} = group.y * {{ tile_rows }}u + {{ 4 * rows_down * (r // 4) + r % 4 }}u + down * 4u;
    let x_scale{{ r }} = x_scales[row{{ r }}];
{% if swiglu %}
    store_four(row{{ r }}, y_column(first_column + across * 4u), vec4f(sum{{ r }}_0) * (x_scale{{ r }} * scales0), vec4f(sum{{ r }}_1) * (x_scale{{ r }} * scales1));
{% else %}
{% for q in range(2) %}
    store_four(row{{ r }}, first_column + {{ 4 * columns_across * q }}u + across * 4u, vec4f(sum{{ r }}_{{ q }}) * (x_scale{{ r }} * scales{{ q }}));
{% endfor %}
{% endif %}
{% endfor %}
}
