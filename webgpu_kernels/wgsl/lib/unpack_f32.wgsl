// Weight format f32: weight is f32[N, K]. A step is 4 weights.
alias WeightRow = u32; // index of the row's first {{ "four" if aligned else "weight" }}
alias WeightStep = u32;

fn weight_row(column: u32) -> WeightRow {
    return column * {{ "(K / 4u)" if aligned else "K" }};
}

fn weight_step(step: u32) -> WeightStep {
    return step;
}
{% if aligned %}

fn load_weights(row: WeightRow, at: WeightStep) -> vec4f {
    return weight[row + at];
}
{% else %}

fn one_weight(index: u32) -> f32 {
    return weight[index];
}

// Up to four weights from index `first`: those from `left` on are zero.
fn four_weights(first: u32, left: u32) -> vec4f {
    return vec4f(
        one_weight(first),
        select(0.0, one_weight(first + 1u), left > 1u),
        select(0.0, one_weight(first + 2u), left > 2u),
        select(0.0, one_weight(first + 3u), left > 3u),
    );
}

fn load_weights(row: WeightRow, at: WeightStep) -> vec4f {
    return four_weights(row + at * 4u, K - at * 4u);
}
{% endif %}
