// Weight format ternary: codes of two bits, u32[N, K / 16], 0, 1, 2 are -scale, 0, +scale. A step is 8 weights.
// Codes are masked, not shifted, out of their word: the position goes into the factor, and `abs` undoes the
// sign of a code that reaches bit 31.
{% include "lib/scales.wgsl" %}

struct WeightRow {
    first: u32,
    scale: ScaleRow,
}

struct WeightStep {
    word: u32,
    scale: ScaleStep,
    mask_a: vec4u,
    mask_b: vec4u,
    factor: vec2f, // of weights 0 and 4
}

fn weight_row(column: u32) -> WeightRow {
    return WeightRow(column * (K / 16u), scale_row(column));
}

fn weight_step(step: u32) -> WeightStep {
    let upper = (step & 1u) == 1u;
    let unit = select(1u, 0x10000u, upper);
    let factor = select(vec2f(1.0, 1.0 / 256.0), vec2f(1.0 / 65536.0, 1.0 / 16777216.0), upper);
    let a = vec4u(3u, 12u, 48u, 192u) * unit;
    return WeightStep(step >> 1u, scale_step(step), a, a * 256u, factor);
}

fn load_weights(row: WeightRow, at: WeightStep) -> mat2x4f {
    let scale = scale_half(scales[scale_word(row.scale, at.scale)], row.scale, at.scale);
    let four = vec4f(1.0, 0.25, 0.0625, 0.015625) * scale;
    let packed = vec4u(codes[row.first + at.word]);
    return mat2x4f(
        vec4f(bitcast<vec4i>(packed & at.mask_a)) * (four * at.factor.x) - scale,
        abs(vec4f(bitcast<vec4i>(packed & at.mask_b))) * (four * at.factor.y) - scale,
    );
}
