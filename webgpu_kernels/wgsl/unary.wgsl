// y[i0, i1, …] = {{ op }}(x[i0, i1, …]) over strided views of rank {{ rank }}; one thread an element.

{{ interface }}
{% include "lib/pointwise_functions.wgsl" %}

fn operation(x: f32) -> f32 {
    return {{ expressions[op] }};
}

const THREADS = 256u;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(num_workgroups) workgroups: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    var i0 = (workgroup.x + workgroup.y * workgroups.x) * THREADS + thread;
    {% for axis in range(rank - 1, 0, -1) %}
    let i{{ axis }} = i0 % params.d{{ axis }};
    i0 /= params.d{{ axis }};
    {% endfor %}
    if (i0 >= params.d0) {
        return;
    }
    var x_index = params.x_offset;
    var y_index = params.y_offset;
    {% for axis in range(rank) %}
    x_index += i{{ axis }} * params.x_s{{ axis }};
    y_index += i{{ axis }} * params.y_s{{ axis }};
    {% endfor %}
    y[y_index] = operation(x[x_index]);
}
