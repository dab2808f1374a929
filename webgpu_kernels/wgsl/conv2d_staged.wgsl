enable f16;
// y = conv(x, W) + bias, as conv2d.wgsl, through workgroup memory. Operands are f16, sums f32.
// 256 threads as 16 x 16 share {{ thread_rows }} rows of 16 pixels by {{ 16 * thread_columns }} output channels. They stage four times
// FOURS input channels of all the pixels that these need, normalized once for all taps, then the weights of one tap
// at a time.
{% import "lib/tile.wgsl" as registers %}
{{ interface }}
override K: u32 = KERNEL_SIZE * KERNEL_SIZE * IN_CHANNELS;
override TAPS: u32 = KERNEL_SIZE * KERNEL_SIZE;
override TAP_STEPS: u32 = (IN_CHANNELS + 3u) / 4u;
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}

{% include "lib/picture.wgsl" %}

override LINE: u32 = 15u + KERNEL_SIZE;
override AREA: u32 = LINE * ({{ thread_rows - 1 }}u + KERNEL_SIZE);
// One unused four after each line keeps threads that store next to each other on different memory banks.
override X_LINE: u32 = AREA + 1u;
const W_LINE = {{ 16 * thread_columns + 1 }}u;
// What fits into the 16 KiB of workgroup memory that every adapter has.
override FOURS: u32 = max(1u, min(min({{ depth // 4 }}u, TAP_STEPS), 2048u / (X_LINE + W_LINE)));
override STEPS: u32 = (TAP_STEPS + FOURS - 1u) / FOURS * TAPS;
var<workgroup> staged_x: array<vec4h, FOURS * X_LINE>;
var<workgroup> staged_w: array<vec4h, FOURS * W_LINE>;

// Beyond the range of f16 a value becomes the greatest, not infinity.
fn to_f16(value: vec4f) -> vec4h {
    return vec4h(clamp(value, vec4f(-65504.0), vec4f(65504.0)));
}

fn stage_x(first_row: u32, first_column: u32, first_four: u32, thread: u32) {
    for (var i = thread; i < AREA * FOURS; i += 256u) {
        let part = i % FOURS;
        let place = i / FOURS;
        let four = first_four + part;
        if (four < TAP_STEPS) {
            let value = operand(first_row + place / LINE, first_column + place % LINE, four, norm_of(four));
            staged_x[part * X_LINE + place] = to_f16(value);
        }
    }
}

fn stage_w(first_channel: u32, tap: u32, first_four: u32, thread: u32) {
    for (var i = thread; i < {{ 16 * thread_columns }}u * FOURS; i += 256u) {
        let part = i % FOURS;
        let line = i / FOURS;
        let four = first_four + part;
        if (four < TAP_STEPS) {
            let row = weight_row(min(first_channel + line, OUT_CHANNELS - 1u));
{% if aligned %}
            let value = load_weights(row, weight_step(tap * TAP_STEPS + four));
{% else %}
            let value = four_weights(row + tap * IN_CHANNELS + four * 4u, IN_CHANNELS - four * 4u);
{% endif %}
            staged_w[part * W_LINE + line] = to_f16(value);
        }
    }
}

fn store(row: u32, column: u32, channel: u32, sum: f32) {
    if (row - params.row_first < params.rows && column < picture_width() && channel < OUT_CHANNELS) {
        store_value(row, column, channel, sum);
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let across = thread % 16u;
    let down = thread / 16u;
    let tiles = (picture_width() + 15u) / 16u;
    let row = params.row_first + group.y / tiles * {{ thread_rows }}u;
    let column = group.y % tiles * 16u;
    let channel = group.x * {{ 16 * thread_columns }}u;
{% for r in range(thread_rows) %}
{% for c in range(thread_columns) %}
    var sum{{ r }}_{{ c }} = 0.0;
{% endfor %}
{% endfor %}
    for (var step = 0u; step < STEPS; step++) {
        let tap = step % TAPS;
        let first_four = step / TAPS * FOURS;
        workgroupBarrier();
        if (tap == 0u) {
            stage_x(row - KERNEL_SIZE / 2u, column - KERNEL_SIZE / 2u, first_four, thread);
        }
        stage_w(channel, tap, first_four, thread);
        workgroupBarrier();
        let first_x = tap / KERNEL_SIZE * LINE + tap % KERNEL_SIZE + down;
        for (var four = 0u; four < min(FOURS, TAP_STEPS - first_four); four++) {
{% for c in range(thread_columns) %}
            let w{{ c }} = vec4f(staged_w[four * W_LINE + across + {{ 16 * c }}u]);
{% endfor %}
{% call(r, v) registers.accumulate(thread_rows, thread_columns, 1) %}
        vec4f(staged_x[four * X_LINE + first_x + {{ r }}u * LINE])
{% endcall %}
        }
    }
{% for r in range(thread_rows) %}
{% for c in range(thread_columns) %}
    store(row + {{ r }}u, column + down, channel + across + {{ 16 * c }}u, sum{{ r }}_{{ c }});
{% endfor %}
{% endfor %}
}
