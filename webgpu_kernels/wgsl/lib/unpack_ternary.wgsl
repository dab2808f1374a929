// Weight format ternary: codes of two bits, u32[N, K / 16], 0, 1, 2 are -scale, 0, +scale. A step is 16 weights, a word.
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
}

fn weight_row(column: u32) -> WeightRow {
    return WeightRow(column * (K / 16u), scale_row(column));
}

fn weight_step(step: u32) -> WeightStep {
    return WeightStep(step, scale_step(2u * step));
}

fn load_weights(row: WeightRow, at: WeightStep) -> mat4x4f {
    let scale = scale_half(scales[scale_word(row.scale, at.scale)], row.scale, at.scale);
    let four = vec4f(1.0, 0.25, 0.0625, 0.015625) * scale;
    let packed = vec4u(codes[row.first + at.word]);
    let mask = vec4u(3u, 12u, 48u, 192u);
    return mat4x4f(
        vec4f(bitcast<vec4i>(packed & mask)) * four - scale,
        vec4f(bitcast<vec4i>(packed & (mask << vec4u(8u)))) * (four / 256.0) - scale,
        vec4f(bitcast<vec4i>(packed & (mask << vec4u(16u)))) * (four / 65536.0) - scale,
        abs(vec4f(bitcast<vec4i>(packed & (mask << vec4u(24u))))) * (four / 16777216.0) - scale,
    );
}
