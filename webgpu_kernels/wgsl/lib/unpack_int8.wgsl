// Weight format int8: codes of eight bits, u32[N, K / 4], w = code * scale + offset. A step is 8 weights.
// Codes are masked, not shifted, out of their word. The last one of a word would reach the sign: its top bit is
// flipped, which takes 128 from the code.
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
    return WeightRow(column * (K / 4u), scale_row(column));
}

fn weight_step(step: u32) -> WeightStep {
    return WeightStep(step * 2u, scale_step(step));
}

fn four_codes(word: u32) -> vec4f {
    let masked = vec4u(word) & vec4u(0xffu, 0xff00u, 0xff0000u, 0xff000000u);
    return vec4f(bitcast<vec4i>(masked ^ vec4u(0u, 0u, 0u, 1u << 31u)));
}

fn load_weights(row: WeightRow, at: WeightStep) -> mat2x4f {
    let word = scale_word(row.scale, at.scale);
    let scale = scale_half(scales[word], row.scale, at.scale);
    let offset = scale_half(offsets[word], row.scale, at.scale);
    let four = vec4f(1.0, 1.0 / 256.0, 1.0 / 65536.0, 1.0 / 16777216.0) * scale;
    let rest = vec4f(offset, offset, offset, offset + 128.0 * scale);
    let word_at = row.first + at.word;
    return mat2x4f(four_codes(codes[word_at]) * four + rest, four_codes(codes[word_at + 1u]) * four + rest);
}
