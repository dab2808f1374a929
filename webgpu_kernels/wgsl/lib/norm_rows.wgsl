// A workgroup handles ROWS rows, LANES threads a row. The grid is folded: groups are counted along x,
// then y. Few threads a row make few workgroups, and software adapters pay for every workgroup that has
// a barrier.

const LANES = {{ lanes }}u;
const ROWS = {{ rows }}u;
const THREADS = LANES * ROWS;

var<workgroup> lane_sums: array<f32, {{ sums }}u * THREADS>;

// The sum of `value` over the threads of a row. All threads of the workgroup must call it; each call
// takes a slot of its own, which saves the barrier between reading one sum and writing the next.
fn row_sum(value: f32, thread: u32, slot: u32) -> f32 {
    lane_sums[slot * THREADS + thread] = value;
    workgroupBarrier();
    let first = slot * THREADS + thread / LANES * LANES;
    var total = 0.0;
    for (var lane = 0u; lane < LANES; lane++) {
        total += lane_sums[first + lane];
    }
    return total;
}
