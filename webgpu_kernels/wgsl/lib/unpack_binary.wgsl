// Weight format binary: codes are bits, u32[N, K / 32], 1 is +scale, 0 is -scale. A step is 16 weights, half a word.
{% include "lib/scales.wgsl" %}

struct WeightRow {
    first: u32,
    scale: ScaleRow,
}

struct WeightStep {
    word: u32,
    scale: ScaleStep,
    to_upper: u32, // a product with this moves the bits of the step to the upper half
}

fn weight_row(column: u32) -> WeightRow {
    return WeightRow(column * (K / 32u), scale_row(column));
}

fn weight_step(step: u32) -> WeightStep {
    return WeightStep(step >> 1u, scale_step(2u * step), select(0x10000u, 1u, (step & 1u) == 1u));
}

fn load_weights(row: WeightRow, at: WeightStep) -> mat4x4f {
    let scale = vec4u(bitcast<u32>(scale_half(scales[scale_word(row.scale, at.scale)], row.scale, at.scale)));
    let inverted = vec4u(~codes[row.first + at.word] * at.to_upper);
    // Products with these move the bits of weights 0 to 3, of 4 to 7 and so on to bit 31.
    let sign = vec4u(0x80000000u);
    return mat4x4f(
        bitcast<vec4f>(scale ^ ((inverted * vec4u(0x8000u, 0x4000u, 0x2000u, 0x1000u)) & sign)),
        bitcast<vec4f>(scale ^ ((inverted * vec4u(0x800u, 0x400u, 0x200u, 0x100u)) & sign)),
        bitcast<vec4f>(scale ^ ((inverted * vec4u(0x80u, 0x40u, 0x20u, 0x10u)) & sign)),
        bitcast<vec4f>(scale ^ ((inverted * vec4u(8u, 4u, 2u, 1u)) & sign)),
    );
}
