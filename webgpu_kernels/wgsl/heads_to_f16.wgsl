{% set turned = order == "channels" %}
// Heads of x as f16, two in a word, beyond the range of f16 the greatest: {{ "[head][channel][token], tokens filled up with the last one to a multiple of 8" if turned else "[head][token][channel]" }}.
// HEAD_SIZE is a multiple of {{ 16 if turned else 8 }}, x_offset and both strides of 4.
{{ interface }}
override EIGHTS: u32 = HEAD_SIZE / 8u;

{% include "lib/f16_pairs.wgsl" %}

fn load(head: u32, token: u32, four: u32) -> vec4f {
    let row = min(token, params.rows - 1u) * params.x_stride;
    return x[(params.x_offset + head * params.x_head_stride + row) / 4u + four];
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let job = (group.x + group.y * groups.x) * 256u + thread;
{% if turned %}
    // Eight tokens by four channels: threads read four fours, and write eights, side by side.
    let eights = (params.rows + 7u) / 8u;
    let fours = HEAD_SIZE / 4u;
    let block = job / 4u;
    let eight = block % eights;
    let part = block / eights * 4u + job % 4u;
    let head = part / fours;
    let four = part % fours;
    if (head >= HEADS) {
        return;
    }
{% for i in range(8) %}
    let v{{ i }} = load(head, 8u * eight + {{ i }}u, four);
{% endfor %}
{% for c in range(4) %}
    y[(head * HEAD_SIZE + 4u * four + {{ c }}u) * eights + eight] = vec4u(
        pairs(vec4f({% for i in range(4) %}v{{ i }}.{{ "xyzw"[c] }}{{ ", " if i < 3 }}{% endfor %})),
        pairs(vec4f({% for i in range(4, 8) %}v{{ i }}.{{ "xyzw"[c] }}{{ ", " if i < 7 }}{% endfor %})),
    );
{% endfor %}
{% else %}
    let eight = job % EIGHTS;
    let head = job / EIGHTS % HEADS;
    let token = job / EIGHTS / HEADS;
    if (token >= params.rows) {
        return;
    }
    y[(head * params.rows + token) * EIGHTS + eight] = vec4u(
        pairs(load(head, token, 2u * eight)),
        pairs(load(head, token, 2u * eight + 1u)),
    );
{% endif %}
}
