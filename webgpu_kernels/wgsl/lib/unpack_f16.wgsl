// Weight format f16: weight is f16[N, K] in pairs, the first of two in the low half of a word. A step is 4 weights.
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
    let pairs = weight[row + at];
    return vec4f(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
}
{% else %}

fn one_weight(index: u32) -> f32 {
    return unpack2x16float(weight[index / 2u])[index % 2u];
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
