{# Of the tiles of linear; lib/epilogue.wgsl comes before. #}
{% set operands = ["gates", "ups"] if epilogue == "swiglu" else ["sums"] %}
// Four columns of a row of y from `column` on, those inside it.
fn store_four(row: u32, column: u32, {{ operands | join(": vec4f, ") }}: vec4f) {
    if (row >= params.rows) {
        return;
    }
    let first = params.y_offset + row * params.y_stride + column;
{% for i in range(4) %}
    if (column + {{ i }}u < N) {
        y[first + {{ i }}u] = finished(row, column + {{ i }}u, {{ operands | join(".%s, " % "xyzw"[i]) }}.{{ "xyzw"[i] }});
    }
{% endfor %}
}
