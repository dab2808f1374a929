{% set turned = order == "channels" %}
// Heads of x as int8 codes, four in a word, in tiles of {{ tile }} tokens, filled up with zeros: {{ "[tile][head][four of tokens][channel], a scale a channel and tile" if turned else "[tile][head][four of channels][token], a scale a token" }}: max|x| / 127.
{% if turned %}
// After a tile's scales stand the sums of its codes.
{% endif %}
// HEAD_SIZE is a multiple of 4{{ " up to 128" if turned }}, x_offset and both strides, too.
{{ interface }}
override FOURS: u32 = HEAD_SIZE / 4u;

{% include "lib/int8_codes.wgsl" %}

var<workgroup> parts: array<{{ "vec4f" if turned else "f32" }}, 256>;
{% if turned %}
var<workgroup> sums: array<vec4f, 256>;
{% endif %}

fn load(head: u32, token: u32, four: u32) -> vec4f {
    if (token >= params.rows || four >= FOURS) {
        return vec4f();
    }
    return x[(params.x_offset + head * params.x_head_stride + token * params.x_stride) / 4u + four];
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = group.x + group.y * groups.x; // [tile][head]
    let head = block % HEADS;
    let first = block / HEADS * {{ tile }}u;
    let inside = first < params.rows;
{% if turned %}
    // Threads side by side have four channels each, {{ tile // 8 }} tokens.
    let four = thread % 32u;
    let token = first + thread / 32u * {{ tile // 8 }}u;
{% for i in range(tile // 8) %}
    let v{{ i }} = load(head, token + {{ i }}u, four);
{% endfor %}
    var most = abs(v0);
{% for i in range(1, tile // 8) %}
    most = max(most, abs(v{{ i }}));
{% endfor %}
    parts[thread] = most;
    workgroupBarrier();
    for (var i = four; i < 256u; i += 32u) {
        most = max(most, parts[i]);
    }
    let to_code = vec4f({% for c in "xyzw" %}code_factor(most.{{ c }}){{ ", " if c != "w" }}{% endfor %});
{% for i in range(tile // 8) %}
    let codes{{ i }} = codes_of(v{{ i }}, to_code);
{% endfor %}
    sums[thread] = {% for i in range(tile // 8) %}codes{{ i }}{{ " + " if i + 1 < tile // 8 }}{% endfor %};
    workgroupBarrier();
    if (!inside || four >= FOURS) {
        return;
    }
    if (thread < 32u) {
        scales[2u * block * FOURS + four] = most / 127.0;
        var sum = vec4f();
        for (var i = four; i < 256u; i += 32u) {
            sum += sums[i];
        }
        scales[(2u * block + 1u) * FOURS + four] = sum;
    }
{% for i in range(0, tile // 8, 4) %}
    y[(block * {{ tile // 4 }}u + thread / 32u * {{ tile // 32 }}u + {{ i // 4 }}u) * FOURS + four] = vec4u(
{% for c in "xyzw" %}
        word_of(vec4f({% for j in range(4) %}codes{{ i + j }}.{{ c }}{{ ", " if j < 3 }}{% endfor %})),
{% endfor %}
    );
{% endfor %}
{% else %}
    // Threads side by side have a token each, and one of four parts of its channels.
    let token = thread % {{ tile }}u;
    let part = thread / {{ tile }}u;
    var most = 0.0;
    for (var four = part; four < FOURS; four += {{ 256 // tile }}u) {
        most = max(most, greatest(load(head, first + token, four)));
    }
    parts[thread] = most;
    workgroupBarrier();
    for (var i = token; i < 256u; i += {{ tile }}u) {
        most = max(most, parts[i]);
    }
    if (!inside) {
        return;
    }
    if (part == 0u) {
        scales[block * {{ tile }}u + token] = most / 127.0;
    }
    for (var four = part; four < FOURS; four += {{ 256 // tile }}u) {
        y[(block * FOURS + four) * {{ tile }}u + token] = word_of(codes_of(load(head, first + token, four), vec4f(code_factor(most))));
    }
{% endif %}
}
