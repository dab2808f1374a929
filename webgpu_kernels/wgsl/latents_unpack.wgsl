// De-normalise latents and unfold their 2x2 patches:
// y[2r+i, 2c+j, ch] = x[r, c, 4ch+2i+j] * deviation[4ch+2i+j] + mean[4ch+2i+j]
// x: f32[rows, columns, 4 CHANNELS] -> y: f32[2 rows, 2 columns, CHANNELS].
{{ interface }}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let index = id.x + id.y * groups.x * 256u;
    if (index >= params.rows * params.columns * 4u * CHANNELS) {
        return;
    }
    let channel = index % CHANNELS;
    let y_column = (index / CHANNELS) % (2u * params.columns);
    let y_row = index / CHANNELS / (2u * params.columns);
    let x_channel = 4u * channel + 2u * (y_row % 2u) + y_column % 2u;
    let x_pixel = (y_row / 2u) * params.columns + y_column / 2u;
    let value = x[params.x_offset + x_pixel * 4u * CHANNELS + x_channel];
    y[params.y_offset + index] = value * deviation[x_channel] + mean[x_channel];
}
