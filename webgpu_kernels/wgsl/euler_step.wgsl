// y = x + step_size * velocity, all f32[elements]; step_size is one value in a buffer.
{{ interface }}

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    let index = id.x + id.y * groups.x * 256u;
    if (index >= params.elements) {
        return;
    }
    y[params.y_offset + index] =
        x[params.x_offset + index] + step_size[0] * velocity[params.velocity_offset + index];
}
