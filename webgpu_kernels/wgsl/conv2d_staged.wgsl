{{ "enable f16;" if operand == "f16" }}
{# `operand` is what is staged, "f32" or "f16"; `tile_rows` rows of 16 pixels by `tile_columns` output channels, a multiple
   of 64, are a workgroup's; `depth` the input channels staged at once, where they fit; `stages` the number of buffers
   that weights go to by turns; `prefetch` says whether the next weights are read while the present ones are multiplied. #}
{% set value = "vec4h" if operand == "f16" else "vec4f" %}
{% set quads = tile_columns // 64 %}
{% set w_line = tile_columns // 4 %}
{% set w_loads = (w_line * (depth // 4) + 255) // 256 %}
// y = conv(x, W) + bias, as conv2d.wgsl, through workgroup memory. Operands are {{ operand }}, sums f32. 256 threads share
// {{ tile_rows }} rows of 16 pixels by {{ tile_columns }} output channels. They stage four times FOURS input channels of all the pixels
// that these need, normalized once for all taps, then the weights of one tap at a time, input channels first: a thread
// multiplies the channels of {{ tile_rows }} pixels, one below the other, with {{ quads }} times four output channels.
{{ interface }}
override K: u32 = KERNEL_SIZE * KERNEL_SIZE * IN_CHANNELS;
override TAPS: u32 = KERNEL_SIZE * KERNEL_SIZE;
override TAP_STEPS: u32 = IN_CHANNELS / 4u;
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}

{% include "lib/picture.wgsl" %}

override LINE: u32 = 15u + KERNEL_SIZE;
override AREA: u32 = LINE * ({{ tile_rows - 1 }}u + KERNEL_SIZE);
// What fits into the 16 KiB of workgroup memory that every adapter has.
override FOURS: u32 = max(1u, min(min({{ depth // 4 }}u, TAP_STEPS), {{ 2048 if operand == "f16" else 1024 }}u / (AREA + {{ stages * tile_columns }}u)));
override STEPS: u32 = (TAP_STEPS + FOURS - 1u) / FOURS * TAPS;
override W_STAGE: u32 = FOURS * {{ tile_columns }}u;
var<workgroup> staged_x: array<{{ value }}, FOURS * AREA>; // [four of input channels][pixel]
var<workgroup> staged_w: array<{{ value }}, {{ stages }}u * W_STAGE>; // [input channel][four of output channels]

{% if operand == "f16" %}
// Beyond the range of f16 a value becomes the greatest, not infinity.
{% endif %}
fn to_operand(value: vec4f) -> {{ value }} {
    return {{ "vec4h(clamp(value, vec4f(-65504.0), vec4f(65504.0)))" if operand == "f16" else "value" }};
}

// Channels beyond the last are zero.
fn stage_x(first_row: u32, first_column: u32, first_four: u32, thread: u32) {
    for (var i = thread; i < AREA * FOURS; i += 256u) {
        let part = i % FOURS;
        let place = i / FOURS;
        let four = min(first_four + part, TAP_STEPS - 1u);
        let value = operand(first_row + place / LINE, first_column + place % LINE, four, norm_of(four));
        staged_x[part * AREA + place] = to_operand(select(vec4f(), value, first_four + part < TAP_STEPS));
    }
}

// Rows are four output channels. At the end they repeat the last four, as input channels do, where x is zero.
fn fetch_w(channel: u32, tap: u32, four: u32) -> mat4x4f {
    let first = min(channel, OUT_CHANNELS - 4u);
    let step = weight_step(tap * TAP_STEPS + min(four, TAP_STEPS - 1u));
    return mat4x4f(
{% for i in range(4) %}
        load_weights(weight_row(first + {{ i }}u), step),
{% endfor %}
    );
}

fn store_four(row: u32, column: u32, channel: u32, sums: vec4f) {
    if (row - params.row_first < params.rows && column < picture_width() && channel < OUT_CHANNELS) {
{% for i in range(4) %}
        store_value(row, column, channel + {{ i }}u, sums.{{ "xyzw"[i] }});
{% endfor %}
    }
}

{% macro fetch(step) %}
{% for i in range(w_loads) %}
        if (part{{ i }} < FOURS) {
            w{{ i }} = fetch_w(channel + line{{ i }} * 4u, {{ step }} % TAPS, {{ step }} / TAPS * FOURS + part{{ i }});
        }
{% endfor %}
{% endmacro %}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    // 32 threads in a row take 8 fours of channels by 4 pixels, so that few addresses are read at a time.
    let across = thread / 32u % 2u * 8u + thread % 8u;
    let down = thread / 64u * 4u + thread / 8u % 4u;
    let tiles = (picture_width() + 15u) / 16u;
    let row = params.row_first + group.y / tiles * {{ tile_rows }}u;
    let column = group.y % tiles * 16u;
    let channel = group.x * {{ tile_columns }}u;
{% for i in range(w_loads) %}
    let line{{ i }} = (thread + {{ 256 * i }}u) % {{ w_line }}u;
    let part{{ i }} = (thread + {{ 256 * i }}u) / {{ w_line }}u;
    var w{{ i }} = mat4x4f();
{% endfor %}
{% for r in range(tile_rows) %}
{% for q in range(quads) %}
    var sum{{ r }}_{{ q }} = vec4f();
{% endfor %}
{% endfor %}
{% if prefetch %}
{{ fetch("0u") -}}
{% endif %}
    for (var step = 0u; step < STEPS; step++) {
        let tap = step % TAPS;
        let stage = {{ "(step & 1u) * W_STAGE" if stages == 2 else "0u" }};
        if (tap == 0u) {
            workgroupBarrier();
            stage_x(row - KERNEL_SIZE / 2u, column - KERNEL_SIZE / 2u, step / TAPS * FOURS, thread);
        }
{% if not prefetch %}
{{ fetch("step") -}}
{% endif %}
{% for i in range(w_loads) %}
        if (part{{ i }} < FOURS) {
            let turned = transpose(w{{ i }});
{% for j in range(4) %}
            staged_w[stage + (part{{ i }} * 4u + {{ j }}u) * {{ w_line }}u + line{{ i }}] = to_operand(turned[{{ j }}]);
{% endfor %}
        }
{% endfor %}
        workgroupBarrier();
{% if prefetch %}
        // After the last weights the same come again, unused.
        let next = min(step + 1u, STEPS - 1u);
{{ fetch("next") -}}
{% endif %}
        let first_x = tap / KERNEL_SIZE * LINE + tap % KERNEL_SIZE + down;
        let first_w = stage + across;
        for (var four = 0u; four < FOURS; four++) {
{% for j in range(4) %}
{% for q in range(quads) %}
            let w{{ j }}_{{ q }} = {{ "vec4f" if operand == "f16" }}(staged_w[first_w + four * {{ tile_columns }}u + {{ j * w_line + 16 * q }}u]);
{% endfor %}
{% endfor %}
{% for r in range(tile_rows) %}
            let x{{ r }} = {{ "vec4f" if operand == "f16" }}(staged_x[four * AREA + first_x + {{ r }}u * LINE]);
{% for j in range(4) %}
{% for q in range(quads) %}
            sum{{ r }}_{{ q }} += x{{ r }}.{{ "xyzw"[j] }} * w{{ j }}_{{ q }};
{% endfor %}
{% endfor %}
{% endfor %}
        }
{% if stages == 1 %}
        workgroupBarrier();
{% endif %}
    }
{% for r in range(tile_rows) %}
{% for q in range(quads) %}
    store_four(row + {{ r }}u, column + down, channel + {{ 64 * q }}u + across * 4u, sum{{ r }}_{{ q }});
{% endfor %}
{% endfor %}
}
