{# What becomes of linear's sums. `half`, set before this, is for swiglu: tiles take so many rows of the gates, then the
   rows of the ups that go with them. Columns of tiles are rows of W in that order; columns of y are counted apart. #}
{% if epilogue == "swiglu" %}
{% include "lib/pointwise_functions.wgsl" %}

fn y_column(column: u32) -> u32 {
    return column / {{ 2 * half }}u * {{ half }}u + column % {{ half }}u;
}

fn w_row(column: u32) -> u32 {
    return min(y_column(column), N - 1u) + select(0u, N, column % {{ 2 * half }}u >= {{ half }}u);
}

// What y gets at a row and a column, which are inside it.
fn finished(row: u32, column: u32, gate: f32, up: f32) -> f32 {
    return silu(gate{{ " + bias[column]" if bias }}) * {{ "(up + bias[N + column])" if bias else "up" }};
}
{% else %}
fn y_column(column: u32) -> u32 {
    return column;
}

fn w_row(column: u32) -> u32 {
    return min(column, N - 1u);
}

// What y gets at a row and a column, which are inside it.
fn finished(row: u32, column: u32, sum: f32) -> f32 {
{% set full = "sum + bias[column]" if bias else "sum" %}
{% if epilogue == "none" %}
    return {{ full }};
{% else %}
    let before = residual[params.residual_offset + row * params.residual_stride + column];
{% if epilogue == "gate_residual" %}
    return before + gate[params.gate_offset + column] * {{ "(%s)" % full if bias else full }};
{% else %}
    return before + {{ "(%s)" % full if bias else full }};
{% endif %}
{% endif %}
}
{% endif %}
