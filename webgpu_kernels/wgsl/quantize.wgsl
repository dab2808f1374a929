{% set length = "%du" % segment if share == "segment" else "COLUMNS" %}
{% set lanes = lanes[share] %}
// Rows of x as int8 codes, dense, four in a word, with a scale {{ "a row and %d columns" % segment if share == "segment" else "a row" }}: max|x| / 127. Beside the scale
// stands the scale times the sum of the codes. {{ lanes }} threads share a scale, 16 values a thread and step.
// COLUMNS is a multiple of {{ segment if share == "segment" else 16 }}, x_offset and x_stride of 4.
{{ interface }}
override SIXTEENS: u32 = {{ length }} / 16u;
override SEGMENTS: u32 = COLUMNS / {{ length }};

var<workgroup> lane_most: array<f32, {{ threads }}>;
var<workgroup> lane_sums: array<f32, {{ threads }}>;

{% include "lib/int8_codes.wgsl" %}

struct Codes {
    word: u32,
    sum: f32,
}

fn encode(value: vec4f, to_code: f32) -> Codes {
    let codes = codes_of(value, vec4f(to_code));
    return Codes(word_of(codes), dot(codes, vec4f(1.0)));
}

@compute @workgroup_size({{ threads }})
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * groups.x) * {{ threads // lanes }}u + thread / {{ lanes }}u;
    let lane = thread % {{ lanes }}u;
    let row = min(index / SEGMENTS, params.rows - 1u);
    let first = (params.x_offset + row * params.x_stride) / 4u + index % SEGMENTS * SIXTEENS * 4u;
    var most = 0.0;
    for (var i = lane; i < SIXTEENS; i += {{ lanes }}u) {
{% for four in range(4) %}
        most = max(most, greatest(x[first + i * 4u + {{ four }}u]));
{% endfor %}
    }
    lane_most[thread] = most;
    workgroupBarrier();
    let from_lane = thread / {{ lanes }}u * {{ lanes }}u;
    for (var i = 0u; i < {{ lanes }}u; i++) {
        most = max(most, lane_most[from_lane + i]);
    }
    let to_code = code_factor(most);
    let inside = index < params.rows * SEGMENTS;
    var sum = 0.0;
    for (var i = lane; i < SIXTEENS; i += {{ lanes }}u) {
{% for four in range(4) %}
        let codes{{ four }} = encode(x[first + i * 4u + {{ four }}u], to_code);
{% endfor %}
        sum += codes0.sum + codes1.sum + codes2.sum + codes3.sum;
        if (inside) {
            y[index * SIXTEENS + i] = vec4u(codes0.word, codes1.word, codes2.word, codes3.word);
        }
    }
    lane_sums[thread] = sum;
    workgroupBarrier();
    if (lane == 0u && inside) {
        var total = 0.0;
        for (var i = 0u; i < {{ lanes }}u; i++) {
            total += lane_sums[from_lane + i];
        }
        let scale = most / 127.0;
        scales[index] = vec2f(scale, scale * total);
    }
}
