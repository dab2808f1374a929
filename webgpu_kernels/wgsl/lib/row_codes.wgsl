{# W as int8 with one scale a row, the greatest magnitude of its weights / 127: what follows lib/sixteen.wgsl where sums go
   over all of K. #}
{% set affine = weights in ("int4", "int8") %}

// The greatest magnitude of a weight in a row of W, from its scales.
fn greatest(column: u32) -> f32 {
    var most = 0.0;
    for (var group = 0u; group < GROUPS; group++) {
        let index = column * GROUPS + group;
        let scale = unpack2x16float(half_bits(scales[index / 2u], index)).x;
{% if affine %}
        let offset = unpack2x16float(half_bits(offsets[index / 2u], index)).x;
        most = max(most, max(abs(offset), abs({{ 15 if weights == "int4" else 255 }}.0 * scale + offset)));
{% else %}
        most = max(most, abs(scale));
{% endif %}
    }
    return max(most, 1e-30);
}
{% if affine %}

fn rounded(codes: vec4f, scale: f32, offset: f32) -> u32 {
    return pack4xI8Clamp(vec4i(round(codes * scale + offset)));
}

fn bytes_of(packed: Sixteen, bits: u32, to_code: f32) -> vec4u {
    let both = unpack2x16float(bits) * to_code;
{% if weights == "int4" %}
    let bytes = spread_codes(packed);
{% else %}
    let bytes = packed;
{% endif %}
    return vec4u(
{% for i in range(4) %}
        rounded(vec4f(unpack4xU8(bytes.{{ "xyzw"[i] }})), both.x, both.y),
{% endfor %}
    );
}
{% else %}

// Weights in units of their row's greatest / 127.
fn bytes_of(packed: Sixteen, bits: u32, to_code: f32) -> vec4u {
    let code = i32(round(unpack2x16float(bits).x * to_code));
    let plus = vec4u(u32(code) & 0xffu);
    let minus = vec4u(u32(-code) & 0xffu);
{% if weights == "binary" %}
    let ones = spread_bits(packed);
    return ones * plus + (~ones & vec4u(0x1010101u)) * minus;
{% else %}
    let spread = spread_codes(packed);
    let upper = (spread >> vec4u(1u)) & vec4u(0x1010101u);
    return upper * plus + (~(spread | upper) & vec4u(0x1010101u)) * minus;
{% endif %}
}
{% endif %}
