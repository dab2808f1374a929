{# What linear_outer.wgsl stages as f32 or f16: four rows by four of K. A fetch holds what is stored; lines are made of it
   when it is staged. K is a multiple of 4; beyond it x is zero. #}
{% set vectors = 1 if weights in ("f16", "f32") else 2 %}
{% set bits = {"binary": 1, "ternary": 2, "int4": 4, "int8": 8}[weights] if vectors == 2 else 0 %}
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}
{% include "lib/linear_rows.wgsl" %}
override STEPS: u32 = (K + {{ depth - 1 }}u) / {{ depth }}u;

struct Raw {
    a: vec4u,
    b: vec4u,
    c: vec4u,
    d: vec4u,
}

fn fetch_x(row: u32, four: u32) -> Raw {
    if (four * 4u >= K) {
        return Raw();
    }
    return Raw(
{% for r in range(4) %}
        bitcast<vec4u>(load_x(x_row(row + {{ r }}u), four)),
{% endfor %}
    );
}

// Beyond the range of f16 a value becomes the greatest, not infinity.
fn to_operand(value: vec4f) -> {{ "vec4h" if operand == "f16" else "vec4f" }} {
    return {{ "vec4h(clamp(value, vec4f(-65504.0), vec4f(65504.0)))" if operand == "f16" else "value" }};
}
{% for j in range(4) %}
{% set c = "xyzw"[j] %}

fn line_of_x{{ j }}(raw: Raw) -> {{ "vec4h" if operand == "f16" else "vec4f" }} {
    return to_operand(bitcast<vec4f>(vec4u(raw.a.{{ c }}, raw.b.{{ c }}, raw.c.{{ c }}, raw.d.{{ c }})));
}

fn line_of_w{{ j }}(raw: Raw) -> {{ "vec4h" if operand == "f16" else "vec4f" }} {
{% if weights == "f32" %}
    return to_operand(bitcast<vec4f>(vec4u(raw.a.{{ c }}, raw.b.{{ c }}, raw.c.{{ c }}, raw.d.{{ c }})));
{% elif weights == "f16" %}
{% set word = ["raw.a.x, raw.a.z, raw.b.x, raw.b.z", "raw.a.y, raw.a.w, raw.b.y, raw.b.w"][j // 2] %}
    let words = vec4u({{ word }});
    return to_operand(vec4f({% for i in range(4) %}unpack2x16float(words.{{ "xyzw"[i] }}).{{ "xy"[j % 2] }}{{ ", " if i < 3 }}{% endfor %}));
{% elif weights == "binary" %}
    return to_operand(bitcast<vec4f>(raw.b ^ ((~raw.a << vec4u({{ 31 - j }}u)) & vec4u(0x80000000u))));
{% else %}
    // An integer below 2^23 over the bits of 2^23 is the float of their sum.
    let code = ((raw.a >> vec4u({{ bits * j }}u)) & vec4u({{ 2 ** bits - 1 }}u)) | vec4u(0x4b000000u);
{% if weights == "ternary" %}
    return to_operand((bitcast<vec4f>(code) - 8388609.0) * bitcast<vec4f>(raw.b));
{% else %}
    return to_operand((bitcast<vec4f>(code) - 8388608.0) * bitcast<vec4f>(raw.b) + bitcast<vec4f>(raw.c));
{% endif %}
{% endif %}
}
{% endfor %}

fn fetch_w(first: u32, index: u32) -> Raw {
    let four = min(index, K / 4u - 1u);
{% for r in range(4) %}
    let column{{ r }} = w_row(first + {{ r }}u);
{% endfor %}
{% if weights == "f32" %}
    return Raw(
{% for r in range(4) %}
        bitcast<vec4u>(weight[column{{ r }} * (K / 4u) + four]),
{% endfor %}
    );
{% elif weights == "f16" %}
    return Raw(
        vec4u(weight[column0 * (K / 4u) + four], weight[column1 * (K / 4u) + four]),
        vec4u(weight[column2 * (K / 4u) + four], weight[column3 * (K / 4u) + four]),
        vec4u(),
        vec4u(),
    );
{% else %}
    let at = scale_step(four / 2u);
{% for r in range(4) %}
    let row{{ r }} = scale_row(column{{ r }});
    let word{{ r }} = scale_word(row{{ r }}, at);
{% endfor %}
    let packed = vec4u(
{% for r in range(4) %}
        codes[column{{ r }} * (K / {{ 32 // bits }}u) + four / {{ 8 // bits }}u],
{% endfor %}
    ) >> vec4u(four % {{ 8 // bits }}u * {{ 4 * bits }}u);
    return Raw(
        packed,
        bitcast<vec4u>(vec4f(
{% for r in range(4) %}
            scale_half(scales[word{{ r }}], row{{ r }}, at),
{% endfor %}
        )),
{% if weights in ("int4", "int8") %}
        bitcast<vec4u>(vec4f(
{% for r in range(4) %}
            scale_half(offsets[word{{ r }}], row{{ r }}, at),
{% endfor %}
        )),
{% else %}
        vec4u(),
{% endif %}
        vec4u(),
    );
{% endif %}
}
