{{ "enable f16;" if operand == "f16" }}
// y = conv(x, W) + bias, as conv2d.wgsl, through workgroup memory. Operands are {{ operand }}, sums f32.
// A row of the product is a pixel, counted over the whole image.
{% set vectors = 1 %}
{{ interface }}
override K: u32 = KERNEL_SIZE * KERNEL_SIZE * IN_CHANNELS;
override COLUMN_COUNT: u32 = OUT_CHANNELS;
override TAP_STEPS: u32 = (IN_CHANNELS + 3u) / 4u;
override STEPS: u32 = KERNEL_SIZE * KERNEL_SIZE * TAP_STEPS;
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}

struct XRow {
    row: u32, // of the pixel's first tap; coordinates before the image wrap round to huge numbers
    column: u32,
}

fn x_row(pixel: u32) -> XRow {
    return XRow(pixel / params.width - KERNEL_SIZE / 2u, pixel % params.width - KERNEL_SIZE / 2u);
}

fn load_x(pixel: XRow, step: u32) -> vec4f {
    let tap = step / TAP_STEPS;
    let four = step % TAP_STEPS;
    let row = pixel.row + tap / KERNEL_SIZE;
    let column = pixel.column + tap % KERNEL_SIZE;
    if (row >= params.height || column >= params.width) {
        return vec4f();
    }
    let place = row * params.width + column;
{% if aligned %}
    return x[params.x_offset / 4u + place * TAP_STEPS + four];
{% else %}
    let first = params.x_offset + place * IN_CHANNELS + four * 4u;
    let left = IN_CHANNELS - four * 4u;
    return vec4f(
        x[first],
        select(0.0, x[first + 1u], left > 1u),
        select(0.0, x[first + 2u], left > 2u),
        select(0.0, x[first + 3u], left > 3u),
    );
{% endif %}
}

fn weights_of(row: WeightRow, step: u32) -> vec4f {
{% if aligned %}
    return load_weights(row, weight_step(step));
{% else %}
    let channel = (step % TAP_STEPS) * 4u;
    return four_weights(row + step / TAP_STEPS * IN_CHANNELS + channel, IN_CHANNELS - channel);
{% endif %}
}

fn store(pixel: u32, column: u32, sum: f32) {
    if (pixel < params.height * params.width && column < OUT_CHANNELS) {
        y[params.y_offset + pixel * OUT_CHANNELS + column] = sum{{ " + bias[column]" if bias }};
    }
}

{% include "lib/staged_product.wgsl" %}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    staged_product(group.y * {{ 16 * thread_rows }}u, group.x * {{ 16 * thread_columns }}u, thread);
}
