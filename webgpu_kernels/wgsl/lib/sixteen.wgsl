{# Sixteen weights of a row of W at a time, for variants that stage whole tiles. `load_sixteen` reads them as they are
   stored, so that a prefetch holds few registers. K is a multiple of 16, GROUP of 16. `SIXTEENS` are sixteens a row.
   Where `longer` is set, codes of binary and ternary are bound as longer vectors, and whoever sets it loads them itself.
   Two more functions by `operand`: `pairs_of` makes 16 f16 values, `bytes_of` 16 int8 codes. #}
{% set affine = weights in ("int4", "int8") %}
{% set dense = weights == "f16" %}
override SIXTEENS: u32 = K / 16u;
{% if not dense %}
override GROUPS: u32 = K / GROUP;

// The f16 bits of a half word of scales or offsets.
fn half_bits(word: u32, index: u32) -> u32 {
    return (word >> (16u * (index % 2u))) & 0xffffu;
}

fn scale_index(column: u32, sixteen: u32) -> u32 {
    return column * GROUPS + sixteen / (GROUP / 16u);
}

// Bits of the scale and, above it, of the offset of sixteen weights.
fn scale_bits(column: u32, sixteen: u32) -> u32 {
    let index = scale_index(column, sixteen);
    let bits = half_bits(scales[index / 2u], index);
{% if affine %}
    return bits | (half_bits(offsets[index / 2u], index) << 16u);
{% else %}
    return bits;
{% endif %}
}
{% endif %}

{% if dense %}
struct Sixteen {
    a: vec4u,
    b: vec4u,
}

fn load_sixteen(column: u32, sixteen: u32) -> Sixteen {
    let at = 2u * (column * SIXTEENS + sixteen);
    return Sixteen(weight[at], weight[at + 1u]);
}
{% else %}
alias Sixteen = {{ {"int4": "vec2u", "int8": "vec4u"}.get(weights, "u32") }};
{% if affine or longer is not defined %}

fn load_sixteen(column: u32, sixteen: u32) -> Sixteen {
{% if weights == "binary" %}
    return codes[column * (K / 32u) + sixteen / 2u] >> (16u * (sixteen % 2u));
{% else %}
    return codes[column * SIXTEENS + sixteen];
{% endif %}
}
{% endif %}
{% endif %}
{% if operand == "f16" %}

struct Pairs {
    a: vec4u,
    b: vec4u,
}

{% if weights == "binary" %}
fn pairs_of(packed: Sixteen, bits: u32) -> Pairs {
    let signs = vec4u(~packed) >> vec4u(0u, 2u, 4u, 6u);
    let both = vec4u(bits | (bits << 16u));
    let more = signs >> vec4u(8u);
    return Pairs(
        both ^ (((signs << vec4u(15u)) & vec4u(0x8000u)) | ((signs << vec4u(30u)) & vec4u(0x80000000u))),
        both ^ (((more << vec4u(15u)) & vec4u(0x8000u)) | ((more << vec4u(30u)) & vec4u(0x80000000u))),
    );
}
{% elif weights == "ternary" %}
// Of a code's two bits, inverted, the lower says that the weight is not 0, the upper that it is not positive: code 0
// (inverted 3) is -scale, 1 (2) is -0, 2 (1) is +scale.
fn four_pairs(inverted: vec4u, bits: u32) -> vec4u {
    let spread = (inverted & vec4u(3u)) | ((inverted << vec4u(14u)) & vec4u(0x30000u));
    return ((spread & vec4u(0x10001u)) * vec4u(bits)) ^ ((spread & vec4u(0x20002u)) << vec4u(14u));
}

fn pairs_of(packed: Sixteen, bits: u32) -> Pairs {
    let inverted = vec4u(~packed);
    return Pairs(
        four_pairs(inverted >> vec4u(0u, 4u, 8u, 12u), bits),
        four_pairs(inverted >> vec4u(16u, 20u, 24u, 28u), bits),
    );
}
{% elif affine %}
// Codes below 1024 over the f16 bits of 1024 are the f16 of 1024 + code.
fn affine_pair(codes: u32, scale: vec2<f16>, offset: vec2<f16>) -> u32 {
    return bitcast<u32>(fma(bitcast<vec2<f16>>(codes | 0x64006400u) - vec2<f16>(1024.0), scale, offset));
}

fn pairs_of(packed: Sixteen, bits: u32) -> Pairs {
    let both = bitcast<vec2<f16>>(bits);
    let scale = both.xx;
    let offset = both.yy;
{% for half in range(2) %}
{% for pair in range(4) %}
{% if weights == "int4" %}
    let byte{{ half }}_{{ pair }} = packed.{{ "xy"[half] }} >> {{ 8 * pair }}u;
    let codes{{ half }}_{{ pair }} = (byte{{ half }}_{{ pair }} & 0xfu) | ((byte{{ half }}_{{ pair }} << 12u) & 0xf0000u);
{% else %}
    let two{{ half }}_{{ pair }} = packed.{{ "xyzw"[2 * half + pair // 2] }} >> {{ 16 * (pair % 2) }}u;
    let codes{{ half }}_{{ pair }} = (two{{ half }}_{{ pair }} & 0xffu) | ((two{{ half }}_{{ pair }} << 8u) & 0xff0000u);
{% endif %}
{% endfor %}
{% endfor %}
    return Pairs(
{% for half in range(2) %}
        vec4u(
{% for pair in range(4) %}
            affine_pair(codes{{ half }}_{{ pair }}, scale, offset),
{% endfor %}
        ),
{% endfor %}
    );
}
{% else %}
fn pairs_of(packed: Sixteen) -> Pairs {
    return Pairs(packed.a, packed.b);
}
{% endif %}
{% elif operand == "int8" %}
{% if weights == "binary" %}

// Bits of sixteen codes, one at the foot of each byte.
fn spread_bits(packed: Sixteen) -> vec4u {
    let four = (vec4u(packed) >> vec4u(0u, 4u, 8u, 12u)) & vec4u(0xfu);
    let two = (four | (four << vec4u(14u))) & vec4u(0x30003u);
    return (two | (two << vec4u(7u))) & vec4u(0x1010101u);
}
{% elif weights == "ternary" %}

// Sixteen codes, one a byte.
fn spread_codes(packed: Sixteen) -> vec4u {
    let four = (vec4u(packed) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(0xffu);
    let two = (four | (four << vec4u(12u))) & vec4u(0xf000fu);
    return (two | (two << vec4u(6u))) & vec4u(0x3030303u);
}
{% elif weights == "int4" %}

// Sixteen codes, one a byte.
fn spread_codes(packed: Sixteen) -> vec4u {
    let four = (packed.xxyy >> vec4u(0u, 16u, 0u, 16u)) & vec4u(0xffffu);
    let two = (four | (four << vec4u(8u))) & vec4u(0xff00ffu);
    return (two | (two << vec4u(4u))) & vec4u(0xf0f0f0fu);
}
{% endif %}
{% endif %}
