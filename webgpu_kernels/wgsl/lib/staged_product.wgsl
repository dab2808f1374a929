{# A matrix product through workgroup memory, for adapters where that is fast. 256 threads as 16 x 16 share a tile of
   16 thread_rows by 16 thread_columns outputs and stage `depth` of K at once as {{ operand }}; sums are f32 in named
   variables. The file that includes this defines x_row, load_x, weights_of, store and the overrides STEPS (of
   4 vectors of K) and COLUMN_COUNT. #}
{% import "lib/tile.wgsl" as registers %}
{% set rows = 16 * thread_rows %}
{% set columns = 16 * thread_columns %}
{% set fours = depth // 4 %}
alias Operand4 = vec4<{{ operand }}>;
// One unused four after each line keeps threads that store next to each other on different memory banks.
const X_LINE = {{ rows + 1 }}u;
const W_LINE = {{ columns + 1 }}u;
var<workgroup> staged_x: array<Operand4, {{ fours }}u * X_LINE>;
var<workgroup> staged_w: array<Operand4, {{ fours }}u * W_LINE>;

{% if operand == "f16" %}
// Beyond the range of f16 a value becomes the greatest, not infinity.
{% endif %}
fn to_operand(value: vec4f) -> Operand4 {
{% if operand == "f16" %}
    return Operand4(clamp(value, vec4f(-65504.0), vec4f(65504.0)));
{% else %}
    return value;
{% endif %}
}

fn staged_product(first_row: u32, first_column: u32, thread: u32) {
    let across = thread % 16u;
    let down = thread / 16u;
{% for r in range(thread_rows) %}
{% for c in range(thread_columns) %}
    var sum{{ r }}_{{ c }} = 0.0;
{% endfor %}
{% endfor %}
    for (var step = 0u; step < STEPS; step += {{ fours // vectors }}u) {
        workgroupBarrier();
        for (var i = thread; i < {{ rows * fours }}u; i += 256u) {
            let four = i % {{ fours }}u;
            let line = i / {{ fours }}u;
            var value = vec4f();
            if (step * {{ vectors }}u + four < STEPS * {{ vectors }}u) {
                value = load_x(x_row(first_row + line), step * {{ vectors }}u + four);
            }
            staged_x[four * X_LINE + line] = to_operand(value);
        }
        for (var i = thread; i < {{ columns * fours // vectors }}u; i += 256u) {
            let part = i % {{ fours // vectors }}u;
            let line = i / {{ fours // vectors }}u;
            var value = {{ "vec4f" if vectors == 1 else "mat2x4f" }}();
            if (step + part < STEPS) {
                value = weights_of(weight_row(min(first_column + line, COLUMN_COUNT - 1u)), step + part);
            }
{% for v in range(vectors) %}
            staged_w[(part * {{ vectors }}u + {{ v }}u) * W_LINE + line] = to_operand(value{{ "[%d]" % v if vectors > 1 }});
{% endfor %}
        }
        workgroupBarrier();
        for (var four = 0u; four < {{ fours }}u; four++) {
{% for c in range(thread_columns) %}
            let w{{ c }} = vec4f(staged_w[four * W_LINE + across + {{ 16 * c }}u]);
{% endfor %}
{% call(r, v) registers.accumulate(thread_rows, thread_columns, 1) %}
        vec4f(staged_x[four * X_LINE + down + {{ 16 * r }}u])
{% endcall %}
        }
    }
{% for r in range(thread_rows) %}
{% for c in range(thread_columns) %}
    store(first_row + down + {{ 16 * r }}u, first_column + across + {{ 16 * c }}u, sum{{ r }}_{{ c }});
{% endfor %}
{% endfor %}
}
