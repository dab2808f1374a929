// Weight format binary: codes are bits, u32[N, K / 32], 1 is +scale, 0 is -scale. A step is 8 weights.
{% include "lib/scales.wgsl" %}

struct WeightRow {
    first: u32,
    scale: ScaleRow,
}

struct WeightStep {
    word: u32,
    scale: ScaleStep,
    to_sign_a: vec4u, // a product with these moves the bits of weights 0 to 3 to bit 31
    to_sign_b: vec4u,
}

fn weight_row(column: u32) -> WeightRow {
    return WeightRow(column * (K / 32u), scale_row(column));
}

fn weight_step(step: u32) -> WeightStep {
    let unit = 1u << (24u - 8u * (step & 3u));
    let a = vec4u(128u, 64u, 32u, 16u) * unit;
    return WeightStep(step >> 2u, scale_step(step), a, vec4u(8u, 4u, 2u, 1u) * unit);
}

fn load_weights(row: WeightRow, at: WeightStep) -> mat2x4f {
    let scale = vec4u(bitcast<u32>(scale_half(scales[scale_word(row.scale, at.scale)], row.scale, at.scale)));
    let inverted = ~codes[row.first + at.word];
    return mat2x4f(
        bitcast<vec4f>(scale ^ ((inverted * at.to_sign_a) & vec4u(0x80000000u))),
        bitcast<vec4f>(scale ^ ((inverted * at.to_sign_b) & vec4u(0x80000000u))),
    );
}
