{# Of the tiles of linear. #}
// The sums of a row at four columns from `column` on, those inside y; with the bias.
fn store_four(row: u32, column: u32, sums: vec4f) {
    if (row >= params.rows) {
        return;
    }
    let first = params.y_offset + row * params.y_stride + column;
{% for i in range(4) %}
    if (column + {{ i }}u < N) {
        y[first + {{ i }}u] = sums.{{ "xyzw"[i] }}{{ " + bias[column + %du]" % i if bias }};
    }
{% endfor %}
}
