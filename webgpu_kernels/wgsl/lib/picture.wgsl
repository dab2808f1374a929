{# Pictures and the window of one that a binding holds, for the conv2d templates. #}
// Rows and columns count over the convolved picture{{ ", x with every pixel four times" if upsample }}; y has the same.
fn picture_height() -> u32 {
    return params.height{{ " * 2u" if upsample }};
}

fn picture_width() -> u32 {
    return params.width{{ " * 2u" if upsample }};
}

// Where the pixel starts in x, in {{ "fours" if aligned else "elements" }}.
fn x_place(row: u32, column: u32) -> u32 {
{% if upsample %}
    let pixel = (row / 2u - params.x_first) * params.width + column / 2u;
{% else %}
    let pixel = (row - params.x_first) * params.width + column;
{% endif %}
{% if aligned %}
    return params.x_offset / 4u + pixel * (IN_CHANNELS / 4u);
{% else %}
    return params.x_offset + pixel * IN_CHANNELS;
{% endif %}
}
{% if not aligned %}
{% set arrays = ["x"] if norm == "none" else ["x", "scale", "shift"] %}
{% for name in arrays %}

// Up to four elements of {{ name }} from index `first`: those from `left` on are zero.
fn four_of_{{ name }}(first: u32, left: u32) -> vec4f {
    return vec4f(
        {{ name }}[first],
        select(0.0, {{ name }}[first + 1u], left > 1u),
        select(0.0, {{ name }}[first + 2u], left > 2u),
        select(0.0, {{ name }}[first + 3u], left > 3u),
    );
}
{% endfor %}
{% endif %}
{% if norm == "affine_silu" %}

// The quotient stays finite at any finite value: exp of large arguments gives infinity or NaN on some drivers.
fn silu4(value: vec4f) -> vec4f {
    return value / (1.0 + exp(min(-value, vec4f(80.0))));
}
{% endif %}

// Scale and shift of channels 4 four to 4 four + 3: what every pixel's share of them is normalized with.
struct Norm {
{% if norm == "none" %}
    unused: u32,
{% else %}
    scale: vec4f,
    shift: vec4f,
{% endif %}
}

fn norm_of(four: u32) -> Norm {
{% if norm == "none" %}
    return Norm(0u);
{% elif aligned %}
    return Norm(scale[four], shift[four]);
{% else %}
    let left = IN_CHANNELS - four * 4u;
    return Norm(four_of_scale(four * 4u, left), four_of_shift(four * 4u, left));
{% endif %}
}

// Four channels of the convolved picture, normalized, at a row and a column; zero outside, where coordinates before
// the first wrap round to huge numbers, so that one comparison checks both ends. Channels beyond the last are zero
// in x and in the norm.
fn operand(row: u32, column: u32, four: u32, norm: Norm) -> vec4f {
    let inside = row < picture_height() && column < picture_width();
{% if aligned %}
    let value = x[x_place(row, column) + four];
{% else %}
    let value = four_of_x(x_place(row, column) + four * 4u, IN_CHANNELS - four * 4u);
{% endif %}
{% if norm == "none" %}
    return select(vec4f(), value, inside);
{% else %}
    let normed = value * norm.scale + norm.shift;
    return select(vec4f(), {{ "silu4(normed)" if norm == "affine_silu" else "normed" }}, inside);
{% endif %}
}

fn store_value(row: u32, column: u32, channel: u32, sum: f32) {
    let at = params.y_offset + ((row - params.y_first) * picture_width() + column) * OUT_CHANNELS + channel;
{% if residual == "add" %}
    let residual_row = (row - params.residual_first) * picture_width();
    let other = residual[params.residual_offset + (residual_row + column) * OUT_CHANNELS + channel];
{% endif %}
{% set summand = {"none": "", "add": " + other", "accumulate": " + y[at]"}[residual] %}
    y[at] = sum{{ " + bias[channel]" if bias }}{{ summand }};
}
