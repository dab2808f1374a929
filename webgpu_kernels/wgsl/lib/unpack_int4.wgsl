// Weight format int4: codes of four bits, u32[N, K / 8], w = code * scale + offset. A step is 8 weights.
// Codes are masked, not shifted, out of their word. The last one would reach the sign: its top bit is flipped,
// which takes 8 from the code.
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
    return WeightRow(column * (K / 8u), scale_row(column));
}

fn weight_step(step: u32) -> WeightStep {
    return WeightStep(step, scale_step(step));
}

fn load_weights(row: WeightRow, at: WeightStep) -> mat2x4f {
    let word = scale_word(row.scale, at.scale);
    let scale = scale_half(scales[word], row.scale, at.scale);
    let offset = scale_half(offsets[word], row.scale, at.scale);
    let packed = vec4u(codes[row.first + at.word]);
    let a = bitcast<vec4i>(packed & vec4u(0xfu, 0xf0u, 0xf00u, 0xf000u));
    let b = bitcast<vec4i>((packed & vec4u(0xf0000u, 0xf00000u, 0xf000000u, 0xf0000000u)) ^ vec4u(0u, 0u, 0u, 1u << 31u));
    let four = vec4f(1.0, 0.0625, 0.00390625, 0.000244140625) * scale;
    return mat2x4f(
        vec4f(a) * four + offset,
        vec4f(b) * (four * (1.0 / 65536.0)) + vec4f(offset, offset, offset, offset + 8.0 * scale),
    );
}
