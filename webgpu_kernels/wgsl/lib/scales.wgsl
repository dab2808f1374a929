// Scales (and offsets) of low-bit rows: f16[N, K / GROUP] in pairs. A row may start in the upper half of a word.
// Divisions and shifts are done once a row or a step, not once a weight: a software adapter does them one by one.
override GROUPS: u32 = K / GROUP;

struct ScaleRow {
    word: u32, // where the row's first scale is
    upper: bool,
}

struct ScaleStep {
    word_of_lower: u32, // words from the row's first, for rows that start in a lower half
    word_of_upper: u32,
    odd: bool,
}

fn scale_row(column: u32) -> ScaleRow {
    let first = column * GROUPS;
    return ScaleRow(first >> 1u, (first & 1u) == 1u);
}

// `step` counts eights of K.
fn scale_step(step: u32) -> ScaleStep {
    let group = step / (GROUP / 8u);
    return ScaleStep(group >> 1u, (group + 1u) >> 1u, (group & 1u) == 1u);
}

fn scale_word(row: ScaleRow, at: ScaleStep) -> u32 {
    return row.word + select(at.word_of_lower, at.word_of_upper, row.upper);
}

fn scale_half(pair: u32, row: ScaleRow, at: ScaleStep) -> f32 {
    let halves = unpack2x16float(pair);
    return select(halves.x, halves.y, row.upper != at.odd);
}
