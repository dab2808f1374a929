diagnostic(off, chromium.subgroup_matrix_uniformity);
enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
// y = softmax(q·kᵀ · SCALE) · v as attention.wgsl, with subgroup matrices: operands and weights are f16, scores, sums
// and outputs f32. Heads have {{ channels }} channels; the subgroup size must be 32. k comes as f16 [head][token][channel],
// v as [head][channel][token], so that all right sides are read by columns.
{% set threads = 32 * subgroups %}
{% set rows = 32 * subgroups %}
{% set blocks = channels // 16 %}
{% set eights = channels // 8 %}
{# Lines in workgroup memory, in quads of 16 bytes; one more than needed spreads them over the banks. #}
{% set line = eights + 1 %}
{% set v_line = keys // 8 + 1 %}
{% set s_line = 5 %}
{% set k_jobs = keys * eights // threads %}
{% set v_jobs = channels * keys // 8 // threads %}
{% set result = "subgroup_matrix_result<f32, 16, 16>" %}
{% set left = "subgroup_matrix_left<f16, 16, 16>" %}
{% set right = "subgroup_matrix_right<f16, 16, 16>" %}
//
// A workgroup computes {{ rows }} queries of one head, a subgroup 32 of them, which stay in its matrices, a thread the
// softmax of one. All keys are walked over, {{ keys }} a tile in workgroup memory, 16 at a time: scores go to this memory
// as f32, come back row by row, and go there again as weights in f16. Of that a subgroup sees its own part alone.
//
// Matrices cannot be scaled by rows, so a row's weights are 2^(score − top) with a top that stays while no score exceeds
// it by more than {{ growth }}: f16 and f32 have room for that. Where one does, the subgroup's sums go through workgroup
// memory once and are scaled there.

{{ interface }}

const LOWEST = -3.0e38; // score of an unseen key; infinities are not portable in WGSL

var<workgroup> staged_k: array<vec4u, {{ keys * line }}>; // [key][eight of channels]; q before the first tile
var<workgroup> staged_v: array<vec4u, {{ channels * v_line }}>; // [channel][eight of keys]
var<workgroup> scores: array<vec4u, {{ rows * s_line }}>; // [query][16 keys]

// Between what threads write and others of their subgroup read, or the other way round. These run in step, and matrices are loaded and stored by
// all at once: nothing is to be done. (Where a test emulates matrices, a barrier stands here.)
fn together() {
}

fn pairs(value: vec4f) -> vec2u {
    return vec2u(pack2x16float(value.xy), pack2x16float(value.zw));
}

// q carries the scale, for scores of base 2. Here as in k and v tokens past the end repeat the last one.
fn load_q(head: u32, row: u32, eight: u32) -> vec4u {
    let at = (params.q_offset + head * params.q_head_stride + min(row, params.q_tokens - 1u) * params.q_stride) / 4u + 2u * eight;
    let most = vec4f(65504.0);
    let low = clamp(q[at] * (SCALE * 1.4426950408889634), -most, most);
    return vec4u(pairs(low), pairs(clamp(q[at + 1u] * (SCALE * 1.4426950408889634), -most, most)));
}

{% macro fetch(tile) %}
{% for n in range(k_jobs) %}
        next_k{{ n }} = k[(kv_head * params.kv_tokens + min({{ tile }} + ({{ n * threads }}u + thread) / {{ eights }}u, params.kv_tokens - 1u)) * {{ eights }}u + thread % {{ eights }}u];
{% endfor %}
{% for n in range(v_jobs) %}
        next_v{{ n }} = v[(kv_head * {{ channels }}u + ({{ n * threads }}u + thread) / {{ keys // 8 }}u) * v_eights + min({{ tile }} / 8u + thread % {{ keys // 8 }}u, v_eights - 1u)];
{% endfor %}
{% endmacro %}
@compute @workgroup_size({{ threads }})
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let subgroup = thread / 32u; // plain, so that the browser knows its range and drops the checks of matrix loads
    let head = workgroup.y;
    let kv_head = head / (HEADS / KV_HEADS);
    let first_query = workgroup.x * {{ rows }}u;
    let v_eights = (params.kv_tokens + 7u) / 8u;
    let own = subgroup * {{ 32 * s_line }}u; // this subgroup's scores
    let row = thread * {{ s_line }}u; // and this thread's
{% for r in range(2) %}
{% for c in range(blocks) %}
    var y{{ r }}_{{ c }} = {{ result }}();
    var q{{ r }}_{{ c }}: {{ left }};
{% endfor %}
{% endfor %}
{% for first in range(0, rows, keys) %}
    for (var i = 0u; i < {{ k_jobs }}u; i++) {
        let job = i * {{ threads }}u + thread;
        staged_k[job / {{ eights }}u * {{ line }}u + job % {{ eights }}u] = load_q(head, first_query + {{ first }}u + job / {{ eights }}u, job % {{ eights }}u);
    }
    workgroupBarrier();
    if (subgroup >= {{ first // 32 }}u && subgroup < {{ (first + keys) // 32 }}u) {
        let at = (subgroup - {{ first // 32 }}u) * {{ 32 * line }}u;
{% for r in range(2) %}
{% for c in range(blocks) %}
        q{{ r }}_{{ c }} = subgroupMatrixLoad<{{ left }}, row_major>(&staged_k, at + {{ 16 * r * line + 2 * c }}u, {{ line }}u);
{% endfor %}
{% endfor %}
    }
    workgroupBarrier();
{% endfor %}
{% for n in range(k_jobs) %}
    var next_k{{ n }} = vec4u();
{% endfor %}
{% for n in range(v_jobs) %}
    var next_v{{ n }} = vec4u();
{% endfor %}
{{ fetch("0u") -}}
    var top = LOWEST;
    var sum = 0.0;
    for (var tile = 0u; tile < params.kv_tokens; tile += {{ keys }}u) {
        workgroupBarrier();
{% for n in range(k_jobs) %}
        staged_k[({{ n * threads }}u + thread) / {{ eights }}u * {{ line }}u + thread % {{ eights }}u] = next_k{{ n }};
{% endfor %}
{% for n in range(v_jobs) %}
        staged_v[({{ n * threads }}u + thread) / {{ keys // 8 }}u * {{ v_line }}u + thread % {{ keys // 8 }}u] = next_v{{ n }};
{% endfor %}
        workgroupBarrier();
        // The next tile comes while this one is multiplied; after the last one its last tokens again, unused.
{{ fetch("(tile + %du)" % keys) -}}
{% for first in range(0, keys, 16) %}
        {
            var s0 = {{ result }}();
            var s1 = {{ result }}();
{% for c in range(blocks) %}
            let k{{ c }} = subgroupMatrixLoad<{{ right }}, col_major>(&staged_k, {{ first * line + 2 * c }}u, {{ line }}u);
{% for r in range(2) %}
            s{{ r }} = subgroupMatrixMultiplyAccumulate(q{{ r }}_{{ c }}, k{{ c }}, s{{ r }});
{% endfor %}
{% endfor %}
{% for r in range(2) %}
            subgroupMatrixStore<row_major>(&scores, own + {{ 16 * r * s_line }}u, s{{ r }}, {{ s_line }}u);
{% endfor %}
            together();
{% for i in range(4) %}
            var score{{ i }} = bitcast<vec4f>(scores[row + {{ i }}u]);
{% endfor %}
            if (tile + {{ first + 16 }}u > params.kv_tokens) {
                let key = tile + {{ first }}u + vec4u(0u, 1u, 2u, 3u);
{% for i in range(4) %}
                score{{ i }} = select(vec4f(LOWEST), score{{ i }}, key + {{ 4 * i }}u < vec4u(params.kv_tokens));
{% endfor %}
            }
            let four = max(max(score0, score1), max(score2, score3));
            let greatest = max(max(four.x, four.y), max(four.z, four.w));
            var shrink = 1.0;
            if (greatest > top + {{ growth }}.0) { // so is any score while top is the lowest
                shrink = select(1.0, exp2(top - greatest), top > LOWEST);
                top = greatest;
            }
            if (subgroupAny(shrink < 1.0)) {
                sum *= shrink;
{% for c in range(blocks) %}
{% for r in range(2) %}
                subgroupMatrixStore<row_major>(&scores, own + {{ 16 * r * s_line }}u, y{{ r }}_{{ c }}, {{ s_line }}u);
{% endfor %}
                together();
{% for i in range(4) %}
                scores[row + {{ i }}u] = bitcast<vec4u>(bitcast<vec4f>(scores[row + {{ i }}u]) * shrink);
{% endfor %}
                together();
{% for r in range(2) %}
                y{{ r }}_{{ c }} = subgroupMatrixLoad<{{ result }}, row_major>(&scores, own + {{ 16 * r * s_line }}u, {{ s_line }}u);
{% endfor %}
                together();
{% endfor %}
            }
            // A tile's first 16 keys are never all past the end, so top is a score by now.
{% for i in range(4) %}
            let weight{{ i }} = exp2(score{{ i }} - top);
{% endfor %}
            sum += dot((weight0 + weight1) + (weight2 + weight3), vec4f(1.0));
            scores[row] = vec4u(pairs(weight0), pairs(weight1));
            scores[row + 1u] = vec4u(pairs(weight2), pairs(weight3));
            together();
{% for r in range(2) %}
            let w{{ r }} = subgroupMatrixLoad<{{ left }}, row_major>(&scores, own + {{ 16 * r * s_line }}u, {{ s_line }}u);
{% endfor %}
{% for c in range(blocks) %}
            let v{{ c }} = subgroupMatrixLoad<{{ right }}, col_major>(&staged_v, {{ 16 * c * v_line + first // 8 }}u, {{ v_line }}u);
{% for r in range(2) %}
            y{{ r }}_{{ c }} = subgroupMatrixMultiplyAccumulate(w{{ r }}, v{{ c }}, y{{ r }}_{{ c }});
{% endfor %}
{% endfor %}
            together();
        }
{% endfor %}
    }

    let query = first_query + thread;
    let y_row = (params.y_offset + head * params.y_head_stride + query * params.y_stride) / 4u;
{% for c in range(blocks) %}
{% for r in range(2) %}
    subgroupMatrixStore<row_major>(&scores, own + {{ 16 * r * s_line }}u, y{{ r }}_{{ c }}, {{ s_line }}u);
{% endfor %}
    together();
    if (query < params.q_tokens) {
{% for i in range(4) %}
        y[y_row + {{ 4 * c + i }}u] = bitcast<vec4f>(scores[row + {{ i }}u]) / sum;
{% endfor %}
    }
    together();
{% endfor %}
}
