{# What linear_outer.wgsl stages as int8: four rows by 16 of K, four in a word. A fetch holds what is stored. #}
override STEPS: u32 = K / {{ depth }}u;
override GROUPS: u32 = K / GROUP;
override FLUSH: u32 = min(GROUP, 128u); // columns of x and W that share their scales

// Sums of products are counted from here: as bits of a float they are 12582912 + the sum, up to 2^22.
const FLOAT_ZERO = 0x4b400000i;

struct Raw {
    a: vec4u,
    b: vec4u,
    c: vec4u,
    d: vec4u,
}

fn fetch_x(row: u32, sixteen: u32) -> Raw {
    return Raw(
{% for r in range(4) %}
        x[min(row + {{ r }}u, params.rows - 1u) * (K / 16u) + sixteen],
{% endfor %}
    );
}

fn fetch_w(first: u32, sixteen: u32) -> Raw {
{% for r in range(4) %}
    let column{{ r }} = w_row(first + {{ r }}u);
{% endfor %}
{% if weights == "binary" %}
    let words = vec4u({% for r in range(4) %}codes[column{{ r }} * (K / 32u) + sixteen / 2u]{{ ", " if r < 3 }}{% endfor %});
    return Raw(words >> vec4u(16u * (sixteen % 2u)), vec4u(), vec4u(), vec4u());
{% elif weights == "ternary" %}
    return Raw(vec4u({% for r in range(4) %}codes[column{{ r }} * (K / 16u) + sixteen]{{ ", " if r < 3 }}{% endfor %}), vec4u(), vec4u(), vec4u());
{% elif weights == "int4" %}
    return Raw(
        vec4u(codes[column0 * (K / 16u) + sixteen], codes[column1 * (K / 16u) + sixteen]),
        vec4u(codes[column2 * (K / 16u) + sixteen], codes[column3 * (K / 16u) + sixteen]),
        vec4u(),
        vec4u(),
    );
{% else %}
    return Raw(
{% for r in range(4) %}
        codes[column{{ r }} * (K / 16u) + sixteen],
{% endfor %}
    );
{% endif %}
}
{% for j in range(4) %}
{% set c = "xyzw"[j] %}

fn line_of_x{{ j }}(raw: Raw) -> vec4u {
    return vec4u(raw.a.{{ c }}, raw.b.{{ c }}, raw.c.{{ c }}, raw.d.{{ c }});
}

fn line_of_w{{ j }}(raw: Raw) -> vec4u {
{% if weights == "binary" %}
    let four = (raw.a >> vec4u({{ 4 * j }}u)) & vec4u(0xfu);
    let two = (four | (four << vec4u(14u))) & vec4u(0x30003u);
    let ones = (two | (two << vec4u(7u))) & vec4u(0x1010101u);
    return (~ones & vec4u(0x1010101u)) * vec4u(0xfeu) + vec4u(0x1010101u); // 1 or 255
{% elif weights == "ternary" %}
    let four = (raw.a >> vec4u({{ 8 * j }}u)) & vec4u(0xffu);
    let two = (four | (four << vec4u(12u))) & vec4u(0xf000fu);
    let one = (two | (two << vec4u(6u))) & vec4u(0x3030303u);
    return ((one | vec4u(0x80808080u)) - vec4u(0x1010101u)) ^ vec4u(0x80808080u); // code - 1 in each byte
{% elif weights == "int4" %}
{% set half = "xz" if j < 2 else "yw" %}
    let words = vec4u(raw.a.{{ half }}, raw.b.{{ half }});
    let four = (words >> vec4u({{ 16 * (j % 2) }}u)) & vec4u(0xffffu);
    let two = (four | (four << vec4u(8u))) & vec4u(0xff00ffu);
    return (two | (two << vec4u(4u))) & vec4u(0xf0f0f0fu);
{% else %}
    return vec4u(raw.a.{{ c }}, raw.b.{{ c }}, raw.c.{{ c }}, raw.d.{{ c }}) ^ vec4u(0x80808080u); // code - 128
{% endif %}
}
{% endfor %}

{% set names = ["scales", "offsets"] if weights in ("int4", "int8") else ["scales"] %}
{% for name in names %}
fn {{ name }}_half(index: u32) -> u32 {
    return ({{ name }}[index / 2u] >> (16u * (index % 2u))) & 0xffffu;
}

{% endfor %}
// Of four columns the bits of the scales and, above them, of the offsets.
fn scale_bits_of_four(first: u32, group: u32) -> vec4u {
{% for r in range(4) %}
    let index{{ r }} = w_row(first + {{ r }}u) * GROUPS + group;
{% endfor %}
    return vec4u(
{% for r in range(4) %}
        scales_half(index{{ r }}){{ " | (offsets_half(index%d) << 16u)" % r if names | length == 2 }},
{% endfor %}
    );
}

fn scales_of(bits: vec4u) -> vec4f {
    return vec4f({% for i in range(4) %}unpack2x16float(bits.{{ "xyzw"[i] }}).x{{ ", " if i < 3 }}{% endfor %});
}
{% if names | length == 2 %}

fn offsets_of(bits: vec4u) -> vec4f {
    let offset = vec4f({% for i in range(4) %}unpack2x16float(bits.{{ "xyzw"[i] }}).y{{ ", " if i < 3 }}{% endfor %});
    return offset{{ " + 128.0 * scales_of(bits)" if weights == "int8" }};
}
{% endif %}
