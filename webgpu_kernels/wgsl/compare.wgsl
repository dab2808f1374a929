// How far `found` is from `expected`, both f32[elements], in shares: y: f32[{{ shares }}, 3] holds the sum of squared differences,
// the sum of squares of what is expected, and how many found values are no numbers (they are left out of the first).
// A workgroup computes a share.
{{ interface }}

var<workgroup> parts: array<vec3f, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    var sums = vec3f();
    for (var i = group.x * 256u + thread; i < params.elements; i += {{ 256 * shares }}u) {
        let value = expected[i];
        // Compilers may take it that there are no NaNs, so the bits are looked at.
        let is_number = (found[i] & 0x7f800000u) != 0x7f800000u;
        let difference = select(0.0, bitcast<f32>(found[i]) - value, is_number);
        sums += vec3f(difference * difference, value * value, select(1.0, 0.0, is_number));
    }
    parts[thread] = sums;
    workgroupBarrier();
    if (thread == 0u) {
        var total = vec3f();
        for (var i = 0u; i < 256u; i++) {
            total += parts[i];
        }
        y[3u * group.x] = total.x;
        y[3u * group.x + 1u] = total.y;
        y[3u * group.x + 2u] = total.z;
    }
}
