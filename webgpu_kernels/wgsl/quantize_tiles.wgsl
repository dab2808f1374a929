// Rows of x as int8 codes with a scale a row, max|x| / 127, in tiles of {{ tile }} rows, filled up with zeros: [tile][four of
// columns][row], four codes of a row in a word. A workgroup has eight rows. COLUMNS, x_offset and x_stride are multiples
// of 4.
{% set eight = range(8) %}
{{ interface }}
override FOURS: u32 = COLUMNS / 4u;

{% include "lib/int8_codes.wgsl" %}

var<workgroup> parts: array<vec4f, 64>; // [row][thread]: greatest magnitudes
var<workgroup> tops: array<vec4f, 16>; // [row]: those of eight parts

fn load(row: u32, four: u32) -> vec4f {
    if (row >= params.rows) {
        return vec4f();
    }
    return x[(params.x_offset + row * params.x_stride) / 4u + four];
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let eight = group.x + group.y * groups.x;
    let first = 8u * eight;
    let row = thread / 32u;
    let lane = thread % 32u;
    var most = vec4f();
    for (var i = lane; i < FOURS; i += 32u) {
        most = max(most, abs(load(first + row, i)));
    }
    parts[thread / 4u][thread % 4u] = greatest(most);
    workgroupBarrier();
    if (lane < 8u) {
        tops[2u * row + lane / 4u][lane % 4u] = greatest(parts[8u * row + lane]);
    }
    workgroupBarrier();
    let tile = eight / {{ tile // 8 }}u;
    if (tile * {{ tile }}u >= params.rows) {
        return;
    }
{% for r in eight %}
    let top{{ r }} = greatest(max(tops[{{ 2 * r }}], tops[{{ 2 * r + 1 }}]));
    let to_code{{ r }} = vec4f(code_factor(top{{ r }}));
{% endfor %}
    if (thread < 8u) {
        scales[first + thread] = greatest(max(tops[2u * thread], tops[2u * thread + 1u])) / 127.0;
    }
    for (var i = thread; i < FOURS; i += 256u) {
{% for r in eight %}
        let word{{ r }} = word_of(codes_of(load(first + {{ r }}u, i), to_code{{ r }}));
{% endfor %}
        let at = (tile * FOURS + i) * {{ tile // 4 }}u + eight % {{ tile // 8 }}u * 2u;
        y[at] = vec4u(word0, word1, word2, word3);
        y[at + 1u] = vec4u(word4, word5, word6, word7);
    }
}
