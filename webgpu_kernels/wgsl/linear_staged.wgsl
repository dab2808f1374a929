{{ "enable f16;" if operand == "f16" }}
// y = x · Wᵀ + bias, as linear.wgsl, through workgroup memory. Operands are {{ operand }}, sums f32.
{% set vectors = 1 if weights in ("f16", "f32") else 2 %}
{{ interface }}
override COLUMN_COUNT: u32 = N;
override STEPS: u32 = (K + {{ 4 * vectors - 1 }}u) / {{ 4 * vectors }}u;
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}
{% include "lib/linear_rows.wgsl" %}

fn weights_of(row: WeightRow, step: u32) -> {{ "vec4f" if vectors == 1 else "mat2x4f" }} {
    return load_weights(row, weight_step(step));
}

fn store(row: u32, column: u32, sum: f32) {
    if (row < params.rows && column < N) {
        y[params.y_offset + row * params.y_stride + column] = sum{{ " + bias[column]" if bias }};
    }
}

{% include "lib/staged_product.wgsl" %}
// At most four rows: a thread a column wastes less than a tile.
fn few_rows(column: u32) {
    let weight_row = weight_row(column);
{% for r in range(4) %}
    let x_row{{ r }} = x_row({{ r }}u);
{% endfor %}
    var sums = vec4f();
    for (var step = 0u; step < STEPS; step++) {
        let w = weights_of(weight_row, step);
{% for v in range(vectors) %}
        let four{{ v }} = step * {{ vectors }}u + {{ v }}u;
        sums += vec4f(
{% for r in range(4) %}
            dot(load_x(x_row{{ r }}, four{{ v }}), w{{ "[%d]" % v if vectors > 1 }}),
{% endfor %}
        );
{% endfor %}
    }
{% for r in range(4) %}
    store({{ r }}u, column, sums[{{ r }}]);
{% endfor %}
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let first_column = group.x * {{ 16 * thread_columns }}u;
    let first_row = group.y * {{ 16 * thread_rows }}u;
    if (params.rows > 4u) {
        staged_product(first_row, first_column, thread);
    } else if (thread < {{ 16 * thread_columns }}u && first_column + thread < N) {
        few_rows(first_column + thread);
    }
}
