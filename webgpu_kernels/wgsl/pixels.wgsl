// y: u32[pixels], RGBA8 little endian with full alpha, of clamp(x / 2 + 0.5); x: f32[pixels, 3].
{{ interface }}

fn channel(index: u32) -> u32 {
    return u32(clamp(x[params.x_offset + index] * 0.5 + 0.5, 0.0, 1.0) * 255.0 + 0.5);
}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let pixel = id.x + id.y * groups.x * 256u;
    if (pixel >= params.pixels) {
        return;
    }
    let first = pixel * 3u;
    y[pixel] = channel(first) | (channel(first + 1u) << 8u) | (channel(first + 2u) << 16u) | 0xff000000u;
}
