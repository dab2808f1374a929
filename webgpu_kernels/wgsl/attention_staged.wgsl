{{ "enable f16;" if operand == "f16" }}
// y = softmax(q·kᵀ · SCALE) · v as attention.wgsl, through workgroup memory: operands are {{ operand }}, scores, weights
// and sums f32.
//
// A workgroup walks over all keys for QUERIES queries of one head, KEYS keys a tile. Scores are a matrix product whose
// operands are staged 4 FOURS channels at a time, the output a second one, V_KEYS keys at a time; in both a thread has
// 8 queries (down, down + DOWN, …) and either the 4 keys from 4 across on or the vectors across and across + ACROSS
// of channels. Weights cross between threads 4 P_FOURS keys at a time. exp is 2^x, with log2(e) in the scale.
{% set eight = range(8) %}
{% set four = range(4) %}
{# Vectors that a thread stages at most at once; what is beyond the need of a head size is constant-folded away. #}
{% set q_loads = fours %}
{% set k_loads = [2, 4 * fours // down] | max %}
{% set v_loads = [2, 2 * v_keys // down] | max %}
{% set reduced = "stage" if operand == "f32" else "weights" %}

{{ interface }}

const LOWEST = -3.0e38; // score of an unseen key; infinities are not portable in WGSL
override SMALL: u32 = min(1u, 128u / HEAD_SIZE); // 1: the parameters of this variant; 0: less memory a channel
override VECTORS: u32 = HEAD_SIZE / 4u;
override ACROSS: u32 = 8u * ((HEAD_SIZE + 63u) / 64u);
override DOWN: u32 = 4u + SMALL * {{ down - 4 }}u;
override THREADS: u32 = ACROSS * DOWN;
override QUERIES: u32 = 8u * DOWN;
override KEYS: u32 = 4u * ACROSS;
override FOURS: u32 = 2u + SMALL * {{ fours - 2 }}u;
override CHUNKS: u32 = (VECTORS + FOURS - 1u) / FOURS;
override V_KEYS: u32 = 4u + SMALL * {{ v_keys - 4 }}u;
override Q_STAGE: u32 = QUERIES * FOURS;
override K_STAGE: u32 = KEYS * FOURS;
override V_LINE: u32 = 2u * ACROSS;
override V_STAGE: u32 = V_KEYS * V_LINE;
override STAGE: u32 = max(max(Q_STAGE + K_STAGE, V_STAGE), 2u * THREADS);
const P_FOURS = {{ p_fours }}u;

alias Operand4 = vec4<{{ operand }}>;
// Both arrays hold lines of equal four (channels or keys) in which the row's place is turned by the four, so that threads
// that store next to each other meet different memory banks.
var<workgroup> stage: array<Operand4, STAGE>; // q, then k: [four][row ^ turn]; v: [key][vector]
var<workgroup> weights: array<vec4f, {{ "max(P_FOURS * QUERIES, 2u * THREADS)" if reduced == "weights" else "P_FOURS * QUERIES" }}>; // [four of keys][query ^ turn]

fn turn(four: u32) -> u32 {
    return (2u * four) & 7u;
}

fn q_turn(four: u32) -> u32 {
    return turn(four) & (DOWN - 1u);
}

fn to_operand(value: vec4f) -> Operand4 {
{% if operand == "f16" %}
    return Operand4(clamp(value, vec4f(-65504.0), vec4f(65504.0)));
{% else %}
    return value;
{% endif %}
}

// Queries and keys past the end repeat the last one, channels past the end are 0.
fn load_q(head: u32, first: u32, chunk: u32, i: u32) -> vec4f {
    let vector = chunk * FOURS + i % FOURS;
    let row = min(first + i / FOURS, params.q_tokens - 1u);
    let at = (params.q_offset + head * params.q_head_stride + row * params.q_stride) / 4u;
    return select(vec4f(), q[at + min(vector, VECTORS - 1u)], vector < VECTORS);
}

// Line l of k is key 4 (l % ACROSS) + l / ACROSS of the tile: the keys of one thread are ACROSS lines apart.
fn load_k(head: u32, tile: u32, chunk: u32, i: u32) -> vec4f {
    let vector = chunk * FOURS + i % FOURS;
    let line = i / FOURS;
    let row = min(tile + 4u * (line % ACROSS) + line / ACROSS, params.kv_tokens - 1u);
    let at = (params.k_offset + head * params.k_head_stride + row * params.k_stride) / 4u;
    return select(vec4f(), k[at + min(vector, VECTORS - 1u)], vector < VECTORS);
}

fn load_v(head: u32, first: u32, i: u32) -> vec4f {
    let row = min(first + i / V_LINE, params.kv_tokens - 1u);
    let at = (params.v_offset + head * params.v_head_stride + row * params.v_stride) / 4u;
    return v[at + min(i % V_LINE, VECTORS - 1u)];
}

{% macro load_qk(tile, chunk) %}
{% for n in range(q_loads) %}
if ({{ n }}u * THREADS < Q_STAGE) { next{{ n }} = load_q(head, first_query, {{ chunk }}, {{ n }}u * THREADS + thread); }
{% endfor %}
{% for n in range(k_loads) %}
if ({{ n }}u * THREADS < K_STAGE) { next{{ q_loads + n }} = load_k(kv_head, {{ tile }}, {{ chunk }}, {{ n }}u * THREADS + thread); }
{% endfor %}
{% endmacro %}
{% macro load_values(first) %}
{% for n in range(v_loads) %}
if ({{ n }}u * THREADS < V_STAGE) { next{{ n }} = load_v(kv_head, {{ first }}, {{ n }}u * THREADS + thread); }
{% endfor %}
{% endmacro %}
@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    // Neighbouring threads share a key, those two apart a query: reads of equal addresses merge.
    let down = thread % 2u + thread / (2u * ACROSS) * 2u;
    let across = thread / 2u % ACROSS;
    let head = workgroup.y;
    let kv_head = head / (HEADS / KV_HEADS);
    let first_query = workgroup.x * QUERIES;
    {% if mask == "causal" %}
    let keys_end = min(params.kv_tokens, first_query + QUERIES);
    {% else %}
    let keys_end = params.kv_tokens;
    {% endif %}
    {% for n in range([q_loads + k_loads, v_loads] | max) %}
    var next{{ n }} = vec4f();
    {% endfor %}
    // Of each query: the largest score so far, and this thread's share of the sum of weights.
    {% for r in eight %}
    var top{{ r }} = LOWEST;
    var sum{{ r }} = 0.0;
    var y{{ r }}_0 = vec4f();
    var y{{ r }}_1 = vec4f();
    {% endfor %}
    {% if prefetch %}
    {{ load_qk("0u", "0u") | indent(4) }}
    {% endif %}
    for (var tile = 0u; tile < keys_end; tile += KEYS) {
        {% for r in eight %}
        var s{{ r }} = vec4f(); // scores of this thread's keys
        {% endfor %}
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            {% if not prefetch %}
            {{ load_qk("tile", "chunk") | indent(12) }}
            {% endif %}
            workgroupBarrier();
            {% for n in range(q_loads) %}
            {
                let i = {{ n }}u * THREADS + thread;
                let f = i % FOURS;
                if (i < Q_STAGE) { stage[f * QUERIES + ((i / FOURS) ^ q_turn(f))] = to_operand(next{{ n }}); }
            }
            {% endfor %}
            {% for n in range(k_loads) %}
            {
                let i = {{ n }}u * THREADS + thread;
                let f = i % FOURS;
                if (i < K_STAGE) { stage[Q_STAGE + f * KEYS + ((i / FOURS) ^ turn(f))] = to_operand(next{{ q_loads + n }}); }
            }
            {% endfor %}
            workgroupBarrier();
            {% if prefetch %}
            if (chunk + 1u < CHUNKS) {
                {{ load_qk("tile", "chunk + 1u") | indent(16) }}
            } else {
                {{ load_values("tile") | indent(16) }}
            }
            {% endif %}
            for (var f = 0u; f < FOURS; f++) {
                let k_at = Q_STAGE + f * KEYS + (across ^ turn(f));
                let q_at = f * QUERIES + (down ^ q_turn(f));
                {% for j in four %}
                let k{{ j }} = vec4f(stage[k_at + {{ j }}u * ACROSS]);
                {% endfor %}
                {% for c in "xyzw" %}
                let k_{{ c }} = vec4f(k0.{{ c }}, k1.{{ c }}, k2.{{ c }}, k3.{{ c }});
                {% endfor %}
                {% for r in eight %}
                let q{{ r }} = vec4f(stage[q_at + {{ r }}u * DOWN]);
                {% for c in "xyzw" %}
                s{{ r }} += q{{ r }}.{{ c }} * k_{{ c }};
                {% endfor %}
                {% endfor %}
            }
        }
        {% if reduced == "stage" %}
        workgroupBarrier();
        {% endif %}

        let key = tile + 4u * across;
        let inside = vec4u(key, key + 1u, key + 2u, key + 3u) < vec4u(keys_end);
        {% if mask == "causal" %}
        let last_key = params.kv_tokens - 1u;
        let seen = inside & (vec4u(
            {% for j in four %}
            key_mask[min(key + {{ j }}u, last_key)],
            {% endfor %}
        ) != vec4u());
        {% endif %}
        {% for r in eight %}
        {% if mask == "causal" %}
        let visible{{ r }} = seen & (vec4u(key, key + 1u, key + 2u, key + 3u) <= vec4u(first_query + down + {{ r }}u * DOWN));
        {% else %}
        let visible{{ r }} = inside;
        {% endif %}
        s{{ r }} = select(vec4f(LOWEST), s{{ r }} * (SCALE * 1.4426950408889634), visible{{ r }});
        {% endfor %}
        {% for h in range(2) %}
        {{ reduced }}[2u * (across * DOWN + down) + {{ h }}u] = vec4f(
            {% for r in range(4 * h, 4 * h + 4) %}
            max(max(s{{ r }}.x, s{{ r }}.y), max(s{{ r }}.z, s{{ r }}.w)),
            {% endfor %}
        );
        {% endfor %}
        workgroupBarrier();
        {% for h in range(2) %}
        var new_top{{ h }} = vec4f(top{{ 4 * h }}, top{{ 4 * h + 1 }}, top{{ 4 * h + 2 }}, top{{ 4 * h + 3 }});
        {% endfor %}
        for (var i = down; i < ACROSS * DOWN; i += DOWN) {
            new_top0 = max(new_top0, {{ reduced }}[2u * i]);
            new_top1 = max(new_top1, {{ reduced }}[2u * i + 1u]);
        }
        {% for r in eight %}
        {
            let new_top = new_top{{ r // 4 }}[{{ r % 4 }}];
            let shrink = exp2(top{{ r }} - new_top);
            top{{ r }} = new_top;
            s{{ r }} = select(vec4f(), exp2(s{{ r }} - new_top), s{{ r }} > vec4f(LOWEST));
            sum{{ r }} = sum{{ r }} * shrink + ((s{{ r }}.x + s{{ r }}.y) + (s{{ r }}.z + s{{ r }}.w));
            y{{ r }}_0 *= shrink;
            y{{ r }}_1 *= shrink;
        }
        {% endfor %}

        let fours_end = min(ACROSS, (keys_end - tile + 3u) / 4u);
        for (var first = 0u; first < fours_end; first += V_KEYS / 4u) {
            {% if not prefetch %}
            {{ load_values("tile + 4u * first") | indent(12) }}
            {% endif %}
            workgroupBarrier();
            if (first % P_FOURS == 0u && across >= first && across < first + P_FOURS) {
                let p_at = (across - first) * QUERIES + (down ^ q_turn(across));
                {% for r in eight %}
                weights[p_at + {{ r }}u * DOWN] = s{{ r }};
                {% endfor %}
            }
            {% for n in range(v_loads) %}
            if ({{ n }}u * THREADS + thread < V_STAGE) { stage[{{ n }}u * THREADS + thread] = to_operand(next{{ n }}); }
            {% endfor %}
            workgroupBarrier();
            {% if prefetch %}
            if (first + V_KEYS / 4u < fours_end) {
                {{ load_values("tile + 4u * first + V_KEYS") | indent(16) }}
            } else {
                {{ load_qk("tile + KEYS", "0u") | indent(16) }}
            }
            {% endif %}
            for (var j = 0u; j < V_KEYS / 4u; j++) {
                let f = first % P_FOURS + j;
                let p_at = f * QUERIES + (down ^ q_turn(f));
                let v_at = 4u * j * V_LINE + across;
                {% for i in four %}
                let v{{ i }}_0 = vec4f(stage[v_at + {{ i }}u * V_LINE]);
                let v{{ i }}_1 = vec4f(stage[v_at + {{ i }}u * V_LINE + ACROSS]);
                {% endfor %}
                {% for r in eight %}
                let w{{ r }} = weights[p_at + {{ r }}u * DOWN];
                {% for c in range(2) %}
                {% for i in four %}
                y{{ r }}_{{ c }} += w{{ r }}[{{ i }}] * v{{ i }}_{{ c }};
                {% endfor %}
                {% endfor %}
                {% endfor %}
            }
        }
    }

    workgroupBarrier();
    {% for h in range(2) %}
    {{ reduced }}[2u * (across * DOWN + down) + {{ h }}u] = vec4f({% for r in range(4 * h, 4 * h + 4) %}sum{{ r }}{{ ", " if r % 4 < 3 }}{% endfor %});
    {% endfor %}
    workgroupBarrier();
    var total0 = vec4f();
    var total1 = vec4f();
    for (var i = down; i < ACROSS * DOWN; i += DOWN) {
        total0 += {{ reduced }}[2u * i];
        total1 += {{ reduced }}[2u * i + 1u];
    }
    let y_head = params.y_offset + head * params.y_head_stride;
    {% for r in eight %}
    {
        let query = first_query + down + {{ r }}u * DOWN;
        let total = total{{ r // 4 }}[{{ r % 4 }}];
        let inverse = select(0.0, 1.0 / total, total > 0.0);
        let y_row = (y_head + query * params.y_stride) / 4u;
        if (query < params.q_tokens && across < VECTORS) { y[y_row + across] = y{{ r }}_0 * inverse; }
        if (query < params.q_tokens && across + ACROSS < VECTORS) { y[y_row + across + ACROSS] = y{{ r }}_1 * inverse; }
    }
    {% endfor %}
}
