{# Rows of x for linear, whole or (not aligned) element by element. #}
alias XRow = u32; // where a row of x starts: in fours if aligned

fn x_row(row: u32) -> XRow {
    return {{ "(" if aligned }}params.x_offset + min(row, params.rows - 1u) * params.x_stride{{ ") / 4u" if aligned }};
}

// The four elements 4 four to 4 four + 3 of a row; zero beyond K.
fn load_x(first: XRow, four: u32) -> vec4f {
{% if aligned %}
    return x[first + four];
{% else %}
    let at = first + four * 4u;
    let left = K - four * 4u;
    return vec4f(
        x[at],
        select(0.0, x[at + 1u], left > 1u),
        select(0.0, x[at + 2u], left > 2u),
        select(0.0, x[at + 3u], left > 3u),
    );
{% endif %}
}
