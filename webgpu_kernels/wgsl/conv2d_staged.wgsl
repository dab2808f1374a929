{{ "enable f16;" if operand == "f16" }}
// y = conv(x, W) + bias, as conv2d.wgsl, through workgroup memory. Operands are {{ operand }}, sums f32.
// A row of the product is a pixel, counted over the rows to compute.
{% set vectors = 1 %}
{{ interface }}
override K: u32 = KERNEL_SIZE * KERNEL_SIZE * IN_CHANNELS;
override COLUMN_COUNT: u32 = OUT_CHANNELS;
override TAP_STEPS: u32 = (IN_CHANNELS + 3u) / 4u;
override STEPS: u32 = KERNEL_SIZE * KERNEL_SIZE * TAP_STEPS;
{% include "lib/unpack_" ~ weights ~ ".wgsl" %}

{% include "lib/picture.wgsl" %}

struct XRow {
    row: u32, // of the pixel's first tap; coordinates before the image wrap round to huge numbers
    column: u32,
}

fn x_row(pixel: u32) -> XRow {
    let row = params.row_first + pixel / picture_width();
    return XRow(row - KERNEL_SIZE / 2u, pixel % picture_width() - KERNEL_SIZE / 2u);
}

fn load_x(pixel: XRow, step: u32) -> vec4f {
    let tap = step / TAP_STEPS;
    let four = step % TAP_STEPS;
    return operand(pixel.row + tap / KERNEL_SIZE, pixel.column + tap % KERNEL_SIZE, four, norm_of(four));
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
    let row = pixel / picture_width();
    if (row < params.rows && column < OUT_CHANNELS) {
        store_value(params.row_first + row, pixel % picture_width(), column, sum);
    }
}

{% include "lib/staged_product.wgsl" %}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    staged_product(group.y * {{ 16 * thread_rows }}u, group.x * {{ 16 * thread_columns }}u, thread);
}
