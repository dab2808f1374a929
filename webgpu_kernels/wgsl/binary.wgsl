// y[i0, i1, …] = a[i0, i1, …] {{ symbols[op] }} b[i0, i1, …] over strided views of rank {{ rank }};
// one thread an element. A stride of 0 repeats an operand along that axis.

{{ interface }}

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
    var a_index = params.a_offset;
    var b_index = params.b_offset;
    var y_index = params.y_offset;
    {% for axis in range(rank) %}
    a_index += i{{ axis }} * params.a_s{{ axis }};
    b_index += i{{ axis }} * params.b_s{{ axis }};
    y_index += i{{ axis }} * params.y_s{{ axis }};
    {% endfor %}
    y[y_index] = a[a_index] {{ symbols[op] }} b[b_index];
}
