// Four values as f16, two in a word; beyond the range of f16 a value becomes the greatest.
fn pairs(value: vec4f) -> vec2u {
    let inside = clamp(value, vec4f(-65504.0), vec4f(65504.0));
    return vec2u(pack2x16float(inside.xy), pack2x16float(inside.zw));
}
