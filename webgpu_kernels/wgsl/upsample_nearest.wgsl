// Every pixel four times: x: f32[height, width, CHANNELS] -> y: f32[2 height, 2 width, CHANNELS].
// One thread reads one value of x and writes it to its four places.
{{ interface }}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let index = id.x + id.y * groups.x * 256u;
    if (index >= params.height * params.width * CHANNELS) {
        return;
    }
    let channel = index % CHANNELS;
    let column = (index / CHANNELS) % params.width;
    let row = index / CHANNELS / params.width;
    let value = x[params.x_offset + index];
    let y_row = 2u * params.width * CHANNELS;
    let first = params.y_offset + 2u * row * y_row + 2u * column * CHANNELS + channel;
    y[first] = value;
    y[first + CHANNELS] = value;
    y[first + y_row] = value;
    y[first + y_row + CHANNELS] = value;
}
