// y = softmax(q·kᵀ · SCALE) · v as attention_staged.wgsl, all f32, for heads of 128 channels: a thread has 8 queries by
// 8 keys of the scores, which takes fewer loads a product.
{% set threads = 16 * down %}
{% set queries = 8 * down %}
{% set q_stage = queries * fours %}
{% set k_stage = 128 * fours %}
{% set q_loads = q_stage // threads %}
{% set k_loads = k_stage // threads %}
{% set v_loads = v_keys * 32 // threads %}
{% set eight = range(8) %}
{% set four = range(4) %}
//
// A workgroup walks over all keys for {{ queries }} queries of one head, 128 keys a tile. q and k are staged {{ 4 * fours }} channels at a time,
// v {{ v_keys }} keys at a time; a thread has queries (down, down + {{ down }}, …), keys from 4 across and 64 + 4 across on, and two
// vectors of channels. Weights cross between threads {{ 4 * p_fours }} keys at a time. exp is 2^x, with log2(e) in q.

{{ interface }}

const LOWEST = -3.0e38; // score of a key past the end; infinities are not portable in WGSL

// Both arrays hold lines of equal four (channels or keys) in which the row's place is turned by the four, so that threads
// that store next to each other meet different memory banks. Remainders below are ranges that the browser knows: it
// checks no load there.
var<workgroup> stage: array<vec4f, {{ [q_stage + k_stage, 32 * v_keys, 2 * threads] | max }}>; // q, then k: [four][row ^ turn]; v: [key][vector]
var<workgroup> weights: array<vec4f, {{ p_fours * queries }}>; // [four of keys][query ^ turn]

fn turn(four: u32) -> u32 {
    return (2u * four) & 7u;
}

// Tokens past the end repeat the last one.
fn load_q(head: u32, row: u32, vector: u32) -> vec4f {
    let at = (params.q_offset + head * params.q_head_stride + min(row, params.q_tokens - 1u) * params.q_stride) / 4u;
    return q[at + vector] * (SCALE * 1.4426950408889634);
}

// Line l of k is key 64 (l / 64) + 4 (l % 16) + l / 16 % 4 of the tile: the keys of one thread are 16 lines apart.
fn load_k(head: u32, tile: u32, line: u32, vector: u32) -> vec4f {
    let row = min(tile + 64u * (line / 64u) + 4u * (line % 16u) + line / 16u % 4u, params.kv_tokens - 1u);
    return k[(params.k_offset + head * params.k_head_stride + row * params.k_stride) / 4u + vector];
}

fn load_v(head: u32, row: u32, vector: u32) -> vec4f {
    let at = (params.v_offset + head * params.v_head_stride + min(row, params.kv_tokens - 1u) * params.v_stride) / 4u;
    return v[at + vector];
}

{% macro fetch(tile, chunk) %}
{% for n in range(q_loads) %}
next{{ n }} = load_q(head, first_query + ({{ n * threads }}u + thread) / {{ fours }}u, {{ chunk }} * {{ fours }}u + thread % {{ fours }}u);
{% endfor %}
{% for n in range(k_loads) %}
next{{ q_loads + n }} = load_k(kv_head, {{ tile }}, ({{ n * threads }}u + thread) / {{ fours }}u, {{ chunk }} * {{ fours }}u + thread % {{ fours }}u);
{% endfor %}
{% endmacro %}
{% macro fetch_v(first) %}
{% for n in range(v_loads) %}
next{{ n }} = load_v(kv_head, {{ first }} + ({{ n * threads }}u + thread) / 32u, thread % 32u);
{% endfor %}
{% endmacro %}
{# Of this thread's queries: a value of each to all threads that share them. #}
{% macro tell(value) %}
        {% for h in range(2) %}
        stage[2u * (across * {{ down }}u + down) + {{ h }}u] = vec4f({% for r in range(4 * h, 4 * h + 4) %}{{ value }}{{ r }}{{ ", " if r % 4 < 3 }}{% endfor %});
        {% endfor %}
        workgroupBarrier();
{% endmacro %}
@compute @workgroup_size({{ threads }})
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    // Neighbouring threads share a key, those two apart a query: reads of equal addresses merge.
    let down = thread % 2u + thread / 32u * 2u;
    let across = thread / 2u % 16u;
    let head = workgroup.y;
    let kv_head = head / (HEADS / KV_HEADS);
    let first_query = workgroup.x * {{ queries }}u;
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
    {{ fetch("0u", "0u") | indent(4) }}
    for (var tile = 0u; tile < params.kv_tokens; tile += 128u) {
        {% for r in eight %}
        var s{{ r }}_0 = vec4f(); // scores of this thread's keys
        var s{{ r }}_1 = vec4f();
        {% endfor %}
        for (var chunk = 0u; chunk < {{ 32 // fours }}u; chunk++) {
            workgroupBarrier();
            {% for n in range(q_loads + k_loads) %}
            {
                let i = {{ (n if n < q_loads else n - q_loads) * threads }}u + thread;
                let f = i % {{ fours }}u;
                {% if n < q_loads %}
                stage[f * {{ queries }}u + ((i / {{ fours }}u) ^ turn(f)) % {{ queries }}u] = next{{ n }};
                {% else %}
                stage[{{ q_stage }}u + f * 128u + ((i / {{ fours }}u) ^ turn(f)) % 128u] = next{{ n }};
                {% endif %}
            }
            {% endfor %}
            workgroupBarrier();
            if (chunk + 1u < {{ 32 // fours }}u) {
                {{ fetch("tile", "(chunk + 1u)") | indent(16) }}
            } else {
                {{ fetch_v("tile") | indent(16) }}
            }
            for (var f = 0u; f < {{ fours }}u; f++) {
                let k_at = {{ q_stage }}u + f * 128u + (across ^ turn(f)) % 16u;
                let q_at = f * {{ queries }}u + (down ^ turn(f)) % {{ down }}u;
                {% for j in eight %}
                let k{{ j }} = stage[k_at + {{ 16 * j }}u];
                {% endfor %}
                {% for r in eight %}
                let q{{ r }} = stage[q_at + {{ r * down }}u];
                {% for c in "xyzw" %}
                {% for g in range(2) %}
                s{{ r }}_{{ g }} += q{{ r }}.{{ c }} * vec4f({% for j in four %}k{{ 4 * g + j }}.{{ c }}{{ ", " if j < 3 }}{% endfor %});
                {% endfor %}
                {% endfor %}
                {% endfor %}
            }
        }
        workgroupBarrier();
        if (tile + 128u > params.kv_tokens) {
            {% for g in range(2) %}
            let inside{{ g }} = tile + 4u * across + vec4u({% for j in four %}{{ 64 * g + j }}u{{ ", " if j < 3 }}{% endfor %}) < vec4u(params.kv_tokens);
            {% for r in eight %}
            s{{ r }}_{{ g }} = select(vec4f(LOWEST), s{{ r }}_{{ g }}, inside{{ g }});
            {% endfor %}
            {% endfor %}
        }
        {% for r in eight %}
        let most{{ r }} = max(s{{ r }}_0, s{{ r }}_1);
        let own_top{{ r }} = max(max(most{{ r }}.x, most{{ r }}.y), max(most{{ r }}.z, most{{ r }}.w));
        {% endfor %}
{{ tell("own_top") }}
        {% for h in range(2) %}
        var new_top{{ h }} = vec4f({% for r in range(4 * h, 4 * h + 4) %}top{{ r }}{{ ", " if r % 4 < 3 }}{% endfor %});
        {% endfor %}
        for (var i = 0u; i < 16u; i++) {
            new_top0 = max(new_top0, stage[2u * (i * {{ down }}u + down)]);
            new_top1 = max(new_top1, stage[2u * (i * {{ down }}u + down) + 1u]);
        }
        {% for r in eight %}
        {
            let new_top = new_top{{ r // 4 }}[{{ r % 4 }}];
            let shrink = exp2(top{{ r }} - new_top);
            top{{ r }} = new_top;
            s{{ r }}_0 = exp2(s{{ r }}_0 - new_top);
            s{{ r }}_1 = exp2(s{{ r }}_1 - new_top);
            sum{{ r }} = sum{{ r }} * shrink{% for g in range(2) %} + ((s{{ r }}_{{ g }}.x + s{{ r }}_{{ g }}.y) + (s{{ r }}_{{ g }}.z + s{{ r }}_{{ g }}.w)){% endfor %};
            y{{ r }}_0 *= shrink;
            y{{ r }}_1 *= shrink;
        }
        {% endfor %}

        let fours_end = min(32u, (params.kv_tokens - tile + 3u) / 4u);
        for (var first = 0u; first < fours_end; first += {{ v_keys // 4 }}u) {
            workgroupBarrier();
            {% for g in range(2) %}
            if (first % {{ p_fours }}u == 0u && (across + {{ 16 * g }}u) / {{ p_fours }}u == first / {{ p_fours }}u) {
                let p_at = across % {{ p_fours }}u * {{ queries }}u + (down ^ turn(across)) % {{ down }}u;
                {% for r in eight %}
                weights[p_at + {{ r * down }}u] = s{{ r }}_{{ g }};
                {% endfor %}
            }
            {% endfor %}
            {% for n in range(v_loads) %}
            stage[{{ n * threads }}u + thread] = next{{ n }};
            {% endfor %}
            workgroupBarrier();
            if (first + {{ v_keys // 4 }}u < fours_end) {
                {{ fetch_v("tile + 4u * first + %du" % v_keys) | indent(16) }}
            } else {
                {{ fetch("tile + 128u", "0u") | indent(16) }}
            }
            for (var j = 0u; j < {{ v_keys // 4 }}u; j++) {
                let f = (first + j) % {{ p_fours }}u;
                let p_at = f * {{ queries }}u + (down ^ turn(f)) % {{ down }}u;
                let v_at = {{ 4 * 32 }}u * j + across;
                {% for i in four %}
                let v{{ i }}_0 = stage[v_at + {{ 32 * i }}u];
                let v{{ i }}_1 = stage[v_at + {{ 32 * i + 16 }}u];
                {% endfor %}
                {% for r in eight %}
                let w{{ r }} = weights[p_at + {{ r * down }}u];
                {% for i in four %}
                {% for c in range(2) %}
                y{{ r }}_{{ c }} += w{{ r }}[{{ i }}] * v{{ i }}_{{ c }};
                {% endfor %}
                {% endfor %}
                {% endfor %}
            }
        }
    }

    workgroupBarrier();
{{ tell("sum") }}
    var total0 = vec4f();
    var total1 = vec4f();
    for (var i = 0u; i < 16u; i++) {
        total0 += stage[2u * (i * {{ down }}u + down)];
        total1 += stage[2u * (i * {{ down }}u + down) + 1u];
    }
    let y_head = params.y_offset + head * params.y_head_stride;
    {% for r in eight %}
    {
        let query = first_query + down + {{ r * down }}u;
        let y_row = (y_head + query * params.y_stride) / 4u;
        if (query < params.q_tokens) {
            y[y_row + across] = y{{ r }}_0 / total{{ r // 4 }}[{{ r % 4 }}];
            y[y_row + across + 16u] = y{{ r }}_1 / total{{ r // 4 }}[{{ r % 4 }}];
        }
    }
    {% endfor %}
}
