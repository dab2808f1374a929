// Ternary codes from five trits a byte (exporter/trits.py) to u32 words of sixteen 2-bit codes.
// An invocation expands one unit: 16 bytes hold sixteen fields of ten bits, five words. A byte from 243 on,
// which no export writes, gives a code 3: still two bits.
{{ interface }}

// Ten bits, from the lowest up the five codes, of each of the four bytes of `word`.
fn fields(word: u32) -> vec4u {
    let c0 = (vec4u(word) >> vec4u(0u, 8u, 16u, 24u)) & vec4u(255u);
    let c1 = c0 / 3u;
    let c2 = c0 / 9u;
    let c3 = c0 / 27u;
    let c4 = c0 / 81u;
    return (c0 - 3u * c1) | ((c1 - 3u * c2) << vec4u(2u)) | ((c2 - 3u * c3) << vec4u(4u))
        | ((c3 - 3u * c4) << vec4u(6u)) | (c4 << vec4u(8u));
}

fn put(index: u32, word: u32) {
    if (index < params.words) {
        codes[params.codes_offset + index] = word;
    }
}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let unit = id.x + id.y * groups.x * 256u;
    let first = unit * 5u;
    if (first >= params.words) {
        return;
    }
    let bytes = trits[unit];
    let a = fields(bytes.x);
    let b = fields(bytes.y);
    let c = fields(bytes.z);
    let d = fields(bytes.w);
    put(first, a.x | (a.y << 10u) | (a.z << 20u) | (a.w << 30u));
    put(first + 1u, (a.w >> 2u) | (b.x << 8u) | (b.y << 18u) | (b.z << 28u));
    put(first + 2u, (b.z >> 4u) | (b.w << 6u) | (c.x << 16u) | (c.y << 26u));
    put(first + 3u, (c.y >> 6u) | (c.z << 4u) | (c.w << 14u) | (d.x << 24u));
    put(first + 4u, (d.x >> 8u) | (d.y << 2u) | (d.z << 12u) | (d.w << 22u));
}
