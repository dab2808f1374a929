{% set turned = order == "channels" %}
{% set eight = range(8) %}
// Heads of x as int8 codes, four in a word, in tiles of {{ tile }} tokens, filled up with zeros: {{ "[tile][head][four of tokens][channel], a scale a channel and tile" if turned else "[tile][head][four of channels][token], a scale a token" }}: max|x| / 127.
{% if turned %}
// After a tile's scales stand the sums of its codes.
{% endif %}
// HEAD_SIZE is a multiple of 4 up to 128, x_offset and both strides of 4.
{{ interface }}
override FOURS: u32 = HEAD_SIZE / 4u;

{% include "lib/int8_codes.wgsl" %}

{% if turned %}
var<workgroup> parts: array<vec4f, 256>; // [eight of tokens][four of channels]: greatest magnitudes
var<workgroup> sums: array<vec4f, 256>;
{% else %}
var<workgroup> parts: array<vec4f, {{ 8 * tile }}>; // [token][four of channels]: greatest magnitudes
var<workgroup> tops: array<vec4f, {{ tile }}>; // [token]: those of four parts of the channels
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
    // Threads side by side have four channels each, 8 tokens.
    let four = thread % 32u;
    let token = thread / 32u * 8u;
{% for i in eight %}
    let v{{ i }} = load(head, first + token + {{ i }}u, four);
{% endfor %}
{% if turned %}
    var most = abs(v0);
{% for i in eight[1:] %}
    most = max(most, abs(v{{ i }}));
{% endfor %}
    parts[thread] = most;
    workgroupBarrier();
    for (var i = four; i < 256u; i += 32u) {
        most = max(most, parts[i]);
    }
    let to_code = vec4f({% for c in "xyzw" %}code_factor(most.{{ c }}){{ ", " if c != "w" }}{% endfor %});
{% for i in eight %}
    let codes{{ i }} = codes_of(v{{ i }}, to_code);
{% endfor %}
    sums[thread] = {% for i in eight %}codes{{ i }}{{ " + " if not loop.last }}{% endfor %};
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
{% for half in range(2) %}
    y[(block * {{ tile // 4 }}u + token / 4u + {{ half }}u) * FOURS + four] = vec4u(
{% for c in "xyzw" %}
        word_of(vec4f({% for j in range(4) %}codes{{ 4 * half + j }}.{{ c }}{{ ", " if j < 3 }}{% endfor %})),
{% endfor %}
    );
{% endfor %}
{% else %}
{% for i in eight %}
    parts[(token + {{ i }}u) * 8u + four / 4u][four % 4u] = greatest(v{{ i }});
{% endfor %}
    workgroupBarrier();
    // Four threads share a token.
    let own = max(parts[2u * thread], parts[2u * thread + 1u]);
    tops[thread / 4u][thread % 4u] = greatest(own);
    workgroupBarrier();
    if (inside && thread < {{ tile }}u) {
        scales[block * {{ tile }}u + thread] = greatest(tops[thread]) / 127.0;
    }
    if (!inside || four >= FOURS) {
        return;
    }
{% for i in eight %}
    let word{{ i }} = word_of(codes_of(v{{ i }}, vec4f(code_factor(greatest(tops[token + {{ i }}u])))));
{% endfor %}
    let at = ((block * FOURS + four) * {{ tile }}u + token) / 4u;
    y[at] = vec4u(word0, word1, word2, word3);
    y[at + 1u] = vec4u(word4, word5, word6, word7);
{% endif %}
}
