fn greatest(value: vec4f) -> f32 {
    let size = abs(value);
    return max(max(size.x, size.y), max(size.z, size.w));
}

// What turns values into codes, of values of at most this magnitude.
fn code_factor(most: f32) -> f32 {
    return select(0.0, 127.0 / max(most, 1e-30), most > 0.0);
}

fn codes_of(value: vec4f, to_code: vec4f) -> vec4f {
    return clamp(round(value * to_code), vec4f(-127.0), vec4f(127.0));
}

fn word_of(codes: vec4f) -> u32 {
    let bytes = bitcast<vec4u>(vec4i(codes)) & vec4u(0xffu);
    return bytes.x | (bytes.y << 8u) | (bytes.z << 16u) | (bytes.w << 24u);
}
