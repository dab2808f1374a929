diagnostic(off, chromium.subgroup_matrix_uniformity);
enable f16;
enable subgroups;
enable chromium_experimental_subgroup_matrix;
// y = softmax(q·kᵀ · SCALE) · v as attention.wgsl, with subgroup matrices: operands and weights are f16, scores, sums
// and outputs f32. The subgroup size must be 32.
{% set fours = channels // 4 %}
{% set rows = 16 * subgroups %}
{% set threads = 32 * subgroups %}
{% set blocks = channels // 16 %}
{% set key_blocks = keys // 16 %}
{# Lines in workgroup memory, in fours; unused ones keep rows on different banks, and rows of f16 at multiples of 16 bytes. #}
{% set line = fours + 2 %}
{% set s_line = keys // 4 + 1 %}
{% set w_line = keys // 4 + 2 %}
{% set v_line = keys // 4 + 2 %}
{% set loads = keys * fours // threads %}
{% set stage_rows = threads // fours %}
{% set staged_v = "staged_v" if kv_buffers == 2 else "staged_k" %}
{% set result = "subgroup_matrix_result<f32, 16, 16>" %}
{% set left = "subgroup_matrix_left<f16, 16, 16>" %}
{% set right = "subgroup_matrix_right<f16, 16, 16>" %}
//
// A workgroup computes {{ rows }} queries of one head by {{ channels }} channels of the output, a subgroup 16 of the queries,
// and walks over all keys, {{ keys }} a tile. Heads of more channels take their scores in parts of {{ channels }} channels, again
// for every {{ channels }} channels of output.
//
// Matrices cannot be scaled by rows, so a row's weights are 2^(score − top) with a top that stays while no score exceeds
// it by more than {{ growth }}: f16 and f32 have room for that. Where one does, all rows of the workgroup go through
// workgroup memory once and are scaled there.

{{ interface }}

const LOWEST = -3.0e38; // score of an unseen key; infinities are not portable in WGSL
override VECTORS: u32 = HEAD_SIZE / 4u;
override PARTS: u32 = (HEAD_SIZE + {{ channels - 1 }}u) / {{ channels }}u;
override WIDTH: u32 = min(HEAD_SIZE, {{ channels }}u);

{% if q_in == "workgroup" %}
var<workgroup> staged_q: array<vec4<f16>, {{ rows * line }}>; // [query][four of channels], as is k by key; v is [channel][four of keys]
{% endif %}
{% set v_size = channels * v_line %}
var<workgroup> staged_k: array<vec4<f16>, {{ keys * line if kv_buffers == 2 else [keys * line, v_size] | max }}>;
{% if kv_buffers == 2 %}
var<workgroup> staged_v: array<vec4<f16>, {{ v_size }}>;
{% endif %}
var<workgroup> scores: array<vec4f, {{ rows * s_line }}>; // [query][four of keys]
var<workgroup> weights: array<vec4<f16>, {{ rows * w_line }}>; // the same
var<workgroup> grown: atomic<u32>; // one more than the last tile with a score far above its row's top

fn to_f16(value: vec4f) -> vec4<f16> {
    return vec4<f16>(clamp(value, vec4f(-65504.0), vec4f(65504.0)));
}

// Rows past the end repeat the last one, channels past the end are 0. q carries the scale, for scores of base 2.
fn load_q(head: u32, row: u32, vector: u32) -> vec4f {
    let at = (params.q_offset + head * params.q_head_stride + min(row, params.q_tokens - 1u) * params.q_stride) / 4u;
    return select(vec4f(), q[at + min(vector, VECTORS - 1u)] * (SCALE * 1.4426950408889634), vector < VECTORS);
}

fn load_k(head: u32, row: u32, vector: u32) -> vec4f {
    let at = (params.k_offset + head * params.k_head_stride + min(row, params.kv_tokens - 1u) * params.k_stride) / 4u;
    return select(vec4f(), k[at + min(vector, VECTORS - 1u)], vector < VECTORS);
}

fn load_v(head: u32, row: u32, vector: u32) -> vec4f {
    let at = (params.v_offset + head * params.v_head_stride + min(row, params.kv_tokens - 1u) * params.v_stride) / 4u;
    return select(vec4f(), v[at + min(vector, VECTORS - 1u)], vector < VECTORS);
}

{% macro load(operand, head, first, part) %}
{% for n in range(loads) %}
next{{ n }} = load_{{ operand }}({{ head }}, {{ first }} + {{ n * stage_rows }}u + thread_row, {{ part }} * {{ fours }}u + thread_four);
{% endfor %}
{% endmacro %}
{# v is transposed on its way, four keys by four channels a thread, so that all right sides are read by columns: a shader
   that read k by columns and v by rows got v's 16 x 16 blocks transposed from Chromium 156 on an NVIDIA card. #}
{% macro load_block(first, part) %}
{% for n in range(loads) %}
next{{ n }} = load_v(kv_head, {{ first }} + 4u * v_four{{ n // 4 }} + {{ n % 4 }}u, {{ part }} * {{ fours }}u + v_vector{{ n // 4 }});
{% endfor %}
{% endmacro %}
{% macro stage_block() %}
{% for j in range(loads // 4) %}
{% for i in range(4) %}
{{ staged_v }}[(4u * v_vector{{ j }} + {{ i }}u) * {{ v_line }}u + v_four{{ j }}] = to_f16(vec4f({% for n in range(4) %}next{{ 4 * j + n }}.{{ "xyzw"[i] }}{{ ", " if n < 3 }}{% endfor %}));
{% endfor %}
{% endfor %}
{% endmacro %}
{% macro stage(array) %}
{% for n in range(loads) %}
{{ array }}[({{ n * stage_rows }}u + thread_row) * {{ line }}u + thread_four] = to_f16(next{{ n }});
{% endfor %}
{% endmacro %}
@compute @workgroup_size({{ threads }})
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let subgroup = thread / 32u;
    let thread_row = thread / {{ fours }}u; // staging: of every {{ stage_rows }} rows
    let thread_four = thread % {{ fours }}u;
    {% for j in range(loads // 4) %}
    let v_four{{ j }} = (thread + {{ j * threads }}u) % {{ keys // 4 }}u; // staging of v: of the tile's keys
    let v_vector{{ j }} = (thread + {{ j * threads }}u) / {{ keys // 4 }}u; // of the channels
    {% endfor %}
    let row = thread / 2u; // softmax: two threads a query, fours of keys in turn
    let side = thread % 2u;
    let head = workgroup.y;
    let kv_head = head / (HEADS / KV_HEADS);
    let slice = workgroup.z; // of the output's channels
    let first_query = workgroup.x * {{ rows }}u;
    let query = first_query + row;
    {% if mask == "causal" %}
    let keys_end = min(params.kv_tokens, first_query + {{ rows }}u);
    {% else %}
    let keys_end = params.kv_tokens;
    {% endif %}
    let own_k = subgroup * {{ 16 * s_line }}u; // this subgroup's rows of scores
    let own_w = subgroup * {{ 16 * w_line }}u; // and of weights

    {% for n in range(loads) %}
    var next{{ n }} = vec4f();
    {% endfor %}
    {% for c in range(blocks) %}
    var y{{ c }} = {{ result }}();
    {% if q_in == "registers" %}
    var q{{ c }}: {{ left }};
    {% endif %}
    {% endfor %}
    var top = LOWEST;
    var sum = 0.0; // of this thread's weights
    {% if prefetch %}
    {{ load("k", "kv_head", "0u", "0u") | indent(4) }}
    {% endif %}
    for (var tile = 0u; tile < keys_end; tile += {{ keys }}u) {
        {% for b in range(key_blocks) %}
        var s{{ b }} = {{ result }}();
        {% endfor %}
        for (var part = 0u; part < PARTS; part++) {
            workgroupBarrier();
            if (PARTS > 1u || tile == 0u) {
                {% if q_in == "workgroup" %}
                for (var i = thread_row; i < {{ rows }}u; i += {{ stage_rows }}u) {
                    staged_q[i * {{ line }}u + thread_four] = to_f16(load_q(head, first_query + i, part * {{ fours }}u + thread_four));
                }
                {% else %}
                {% for first in range(0, rows, keys) %}
                for (var i = thread_row; i < {{ keys }}u; i += {{ stage_rows }}u) {
                    let value = load_q(head, first_query + {{ first }}u + i, part * {{ fours }}u + thread_four);
                    staged_k[i * {{ line }}u + thread_four] = to_f16(value);
                }
                workgroupBarrier();
                if (subgroup >= {{ first // 16 }}u && subgroup < {{ (first + keys) // 16 }}u) {
                    let at = (subgroup - {{ first // 16 }}u) * {{ 16 * line }}u;
                    {% for c in range(blocks) %}
                    q{{ c }} = subgroupMatrixLoad<{{ left }}, row_major>(&staged_k, at + {{ 4 * c }}u, {{ line }}u);
                    {% endfor %}
                }
                workgroupBarrier();
                {% endfor %}
                {% endif %}
            }
            {% if not prefetch %}
            {{ load("k", "kv_head", "tile", "part") | indent(12) }}
            {% endif %}
            {{ stage("staged_k") | indent(12) }}
            workgroupBarrier();
            {% if prefetch %}
            if (part + 1u < PARTS) {
                {{ load("k", "kv_head", "tile", "(part + 1u)") | indent(16) }}
            } else {
                {{ load_block("tile", "slice") | indent(16) }}
            }
            {% endif %}
            {% for c in range(blocks) %}
            if ({{ 16 * c }}u < WIDTH) {
                {% if q_in == "workgroup" %}
                let q{{ c }} = subgroupMatrixLoad<{{ left }}, row_major>(&staged_q, subgroup * {{ 16 * line }}u + {{ 4 * c }}u, {{ line }}u);
                {% endif %}
                {% for b in range(key_blocks) %}
                let k{{ b }} = subgroupMatrixLoad<{{ right }}, col_major>(&staged_k, {{ 16 * b * line + 4 * c }}u, {{ line }}u);
                s{{ b }} = subgroupMatrixMultiplyAccumulate(q{{ c }}, k{{ b }}, s{{ b }});
                {% endfor %}
            }
            {% endfor %}
        }
        {% for b in range(key_blocks) %}
        subgroupMatrixStore<row_major>(&scores, own_k + {{ 4 * b }}u, s{{ b }}, {{ s_line }}u);
        {% endfor %}
        workgroupBarrier();

        {% if not prefetch %}
        {{ load_block("tile", "slice") | indent(8) }}
        {% endif %}
        {{ stage_block() | indent(8) }}
        var tile_top = LOWEST;
        {% for i in range(keys // 8) %}
        var score{{ i }} = scores[row * {{ s_line }}u + side + {{ 2 * i }}u];
        {% endfor %}
        {% if mask == "causal" %}
        let last_key = params.kv_tokens - 1u;
        {% else %}
        if (tile + {{ keys }}u > keys_end) {
        {% endif %}
        {% for i in range(keys // 8) %}
        {
            let key = tile + 4u * side + vec4u({{ 8 * i }}u, {{ 8 * i + 1 }}u, {{ 8 * i + 2 }}u, {{ 8 * i + 3 }}u);
            {% if mask == "causal" %}
            let masks = vec4u({% for j in range(4) %}key_mask[min(key[{{ j }}], last_key)]{{ ", " if j < 3 }}{% endfor %});
            score{{ i }} = select(vec4f(LOWEST), score{{ i }}, (key < vec4u(keys_end)) & (key <= vec4u(query)) & (masks != vec4u()));
            {% else %}
            score{{ i }} = select(vec4f(LOWEST), score{{ i }}, key < vec4u(keys_end));
            {% endif %}
        }
        {% endfor %}
        {% if mask != "causal" %}
        }
        {% endif %}
        {% for i in range(keys // 8) %}
        tile_top = max(tile_top, max(max(score{{ i }}.x, score{{ i }}.y), max(score{{ i }}.z, score{{ i }}.w)));
        {% endfor %}
        tile_top = max(tile_top, subgroupShuffleXor(tile_top, 1u));
        var shrink = 1.0;
        if (tile_top > top + {{ growth }}.0) { // so is any score while top is the lowest
            if (top > LOWEST) {
                shrink = exp2(top - tile_top);
                atomicMax(&grown, tile + 1u);
            }
            top = tile_top;
        }
        let shift = select(top, 0.0, top == LOWEST); // a row without keys so far: 2^LOWEST is 0
        sum *= shrink;
        {% for i in range(keys // 8) %}
        let weight{{ i }} = vec4<f16>(exp2(score{{ i }} - shift));
        sum += dot(vec4f(weight{{ i }}), vec4f(1.0));
        weights[row * {{ w_line }}u + side + {{ 2 * i }}u] = weight{{ i }};
        {% endfor %}
        if (workgroupUniformLoad(&grown) == tile + 1u) { // a barrier, too
            {% for c in range(blocks) %}
            if ({{ 16 * c }}u < WIDTH) {
                subgroupMatrixStore<row_major>(&scores, own_k + {{ c % 2 * 4 }}u, y{{ c }}, {{ s_line }}u);
                workgroupBarrier();
                let at = row * {{ s_line }}u + {{ c % 2 * 4 }}u + 2u * side;
                scores[at] *= shrink;
                scores[at + 1u] *= shrink;
                workgroupBarrier();
                y{{ c }} = subgroupMatrixLoad<{{ result }}, row_major>(&scores, own_k + {{ c % 2 * 4 }}u, {{ s_line }}u);
            }
            {% endfor %}
        }
        {% if prefetch %}
        {{ load("k", "kv_head", "tile + %du" % keys, "0u") | indent(8) }}
        {% endif %}
        {% for b in range(key_blocks) %}
        {
            let w = subgroupMatrixLoad<{{ left }}, row_major>(&weights, own_w + {{ 4 * b }}u, {{ w_line }}u);
            {% for c in range(blocks) %}
            if ({{ 16 * c }}u < WIDTH) {
                let values = subgroupMatrixLoad<{{ right }}, col_major>(&{{ staged_v }}, {{ 16 * c * v_line + 4 * b }}u, {{ v_line }}u);
                y{{ c }} = subgroupMatrixMultiplyAccumulate(w, values, y{{ c }});
            }
            {% endfor %}
        }
        {% endfor %}
    }

    sum += subgroupShuffleXor(sum, 1u);
    let inverse = select(0.0, 1.0 / sum, sum > 0.0);
    let y_row = (params.y_offset + head * params.y_head_stride + query * params.y_stride) / 4u;
    {% for c in range(blocks) %}
    if ({{ 16 * c }}u < WIDTH) {
        subgroupMatrixStore<row_major>(&scores, own_k + {{ c % 2 * 4 }}u, y{{ c }}, {{ s_line }}u);
        workgroupBarrier();
        let at = row * {{ s_line }}u + {{ c % 2 * 4 }}u + 2u * side;
        let vector = slice * {{ fours }}u + {{ 4 * c }}u + 2u * side;
        if (query < params.q_tokens && vector < VECTORS) { y[y_row + vector] = scores[at] * inverse; }
        if (query < params.q_tokens && vector + 1u < VECTORS) { y[y_row + vector + 1u] = scores[at + 1u] * inverse; }
    }
    {% endfor %}
}
