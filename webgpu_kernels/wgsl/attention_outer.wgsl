// y = softmax(q·kᵀ · SCALE) · v as attention.wgsl, all f32, for heads of 128 channels: both products as sums of outer
// products of lines in workgroup memory, as in linear_outer.wgsl.
{% set threads = 16 * down %}
{% set q_line = 2 * down %}
{% set k_line = 32 %}
{% set blocks = depth // 4 %}
{% set q_jobs = q_line * blocks %}
{% set jobs = (q_line + k_line) * blocks %}
{% set job_count = (jobs + threads - 1) // threads %}
{% set v_loads = v_keys * 32 // threads %}
{% set eight = range(8) %}
{% set four = range(4) %}
//
// A workgroup walks over all keys for {{ 8 * down }} queries of one head, 128 keys a tile; a thread has 8 queries by 8 keys of
// the scores, and by 8 channels of the output, in registers. q and k are staged {{ depth }} channels at a time, turned, v and
// the weights {{ v_keys }} keys at a time. exp is 2^x, with log2(e) in q.

{{ interface }}

const LOWEST = -3.0e38; // score of a key past the end; infinities are not portable in WGSL

// [channel][four of queries], then [channel][four of keys]; or v as [key][four of channels]
var<workgroup> stage: array<vec4f, {{ [depth * (q_line + k_line), 32 * v_keys] | max }}>;
// [key][four of queries], in which fours take turns by the key's four, so that threads that store side by side meet
// different banks; or what threads tell each other of the rows they share.
var<workgroup> weights: array<vec4f, {{ [v_keys * q_line, 2 * threads] | max }}>;

struct Block {
    a: vec4f,
    b: vec4f,
    c: vec4f,
    d: vec4f,
}

// Four queries or keys by four channels. Tokens past the end repeat the last one.
fn load_q(head: u32, first: u32, four: u32) -> Block {
    let at = (params.q_offset + head * params.q_head_stride) / 4u + four;
    let scale = SCALE * 1.4426950408889634;
    return Block(
{% for i in four %}
        q[at + min(first + {{ i }}u, params.q_tokens - 1u) * (params.q_stride / 4u)] * scale,
{% endfor %}
    );
}

fn load_k(head: u32, first: u32, four: u32) -> Block {
    let at = (params.k_offset + head * params.k_head_stride) / 4u + four;
    return Block(
{% for i in four %}
        k[at + min(first + {{ i }}u, params.kv_tokens - 1u) * (params.k_stride / 4u)],
{% endfor %}
    );
}
{% for c in "xyzw" %}

fn line{{ loop.index0 }}(block: Block) -> vec4f {
    return vec4f(block.a.{{ c }}, block.b.{{ c }}, block.c.{{ c }}, block.d.{{ c }});
}
{% endfor %}

{% macro fetch(tile, chunk) %}
{% for n in range(job_count) %}
        if (job{{ n }} < {{ q_jobs }}u) {
            next{{ n }} = load_q(head, first_query + 4u * four{{ n }}, {{ chunk }} * {{ blocks }}u + block{{ n }});
        } else {{ "if (job%d < %du) " % (n, jobs) if threads * (n + 1) > jobs }}{
            next{{ n }} = load_k(kv_head, {{ tile }} + 4u * four{{ n }}, {{ chunk }} * {{ blocks }}u + block{{ n }});
        }
{% endfor %}
{% endmacro %}
{% macro fetch_v(first) %}
{% for n in range(v_loads) %}
        next_v{{ n }} = v[v_at + min({{ first }} + ({{ n * threads }}u + thread) / 32u, params.kv_tokens - 1u) * (params.v_stride / 4u) + thread % 32u];
{% endfor %}
{% endmacro %}
{# Of this thread's queries: `value` of each row to all threads that share them. #}
{% macro tell(value) %}
{% for h in range(2) %}
        weights[2u * (across * {{ down }}u + down) + {{ h }}u] = vec4f({% for r in range(4 * h, 4 * h + 4) %}{{ value }}{{ r }}{{ ", " if r % 4 < 3 }}{% endfor %});
{% endfor %}
        workgroupBarrier();
{% endmacro %}
@compute @workgroup_size({{ threads }})
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    // Neighbouring threads share keys and channels, those two apart queries: reads of equal addresses merge.
    let down = thread % 2u + thread / 32u * 2u;
    let across = thread / 2u % 16u;
    let head = workgroup.y;
    let kv_head = head / (HEADS / KV_HEADS);
    let first_query = workgroup.x * {{ 8 * down }}u;
    let v_at = (params.v_offset + kv_head * params.v_head_stride) / 4u;
    // Staging: a job is four tokens by four channels; eight neighbours take neighbouring tokens.
{% for n in range(job_count) %}
    let job{{ n }} = thread + {{ n * threads }}u;
    let own{{ n }} = job{{ n }} - select({{ q_jobs }}u, 0u, job{{ n }} < {{ q_jobs }}u);
    let four{{ n }} = own{{ n }} / {{ 8 * blocks }}u * 8u + own{{ n }} % 8u;
    let block{{ n }} = own{{ n }} / 8u % {{ blocks }}u;
    let line{{ n }}_at = select({{ depth * q_line }}u + block{{ n }} * {{ 4 * k_line }}u, block{{ n }} * {{ 4 * q_line }}u, job{{ n }} < {{ q_jobs }}u) + four{{ n }};
    let line{{ n }}_step = select({{ k_line }}u, {{ q_line }}u, job{{ n }} < {{ q_jobs }}u);
    var next{{ n }} = Block();
{% endfor %}
{% for n in range(v_loads) %}
    var next_v{{ n }} = vec4f();
{% endfor %}
{% for r in eight %}
    var top{{ r }} = LOWEST;
    var sum{{ r }} = 0.0;
    var y{{ r }}_0 = vec4f();
    var y{{ r }}_1 = vec4f();
{% endfor %}
{{ fetch("0u", "0u") -}}
    for (var tile = 0u; tile < params.kv_tokens; tile += 128u) {
{% for r in eight %}
        var s{{ r }}_0 = vec4f();
        var s{{ r }}_1 = vec4f();
{% endfor %}
        for (var chunk = 0u; chunk < {{ 128 // depth }}u; chunk++) {
            workgroupBarrier();
{% for n in range(job_count) %}
            {{ "if (job%d < %du) " % (n, jobs) if threads * (n + 1) > jobs }}{
{% for j in four %}
                stage[line{{ n }}_at + {{ j }}u * line{{ n }}_step] = line{{ j }}(next{{ n }});
{% endfor %}
            }
{% endfor %}
            workgroupBarrier();
            if (chunk + 1u < {{ 128 // depth }}u) {
{{ fetch("tile", "(chunk + 1u)") }}
            } else {
{{ fetch_v("tile") }}
            }
{% for c in range(depth) %}
            {
{% for h in range(2) %}
                let q{{ h }} = stage[{{ c * q_line + h * down }}u + down];
                let k{{ h }} = stage[{{ depth * q_line + c * k_line + 16 * h }}u + across];
{% endfor %}
{% for r in eight %}
{% for g in range(2) %}
                s{{ r }}_{{ g }} += q{{ r // 4 }}.{{ "xyzw"[r % 4] }} * k{{ g }};
{% endfor %}
{% endfor %}
            }
{% endfor %}
        }
        if (tile + 128u > params.kv_tokens) {
{% for g in range(2) %}
            let inside{{ g }} = tile + 4u * across + vec4u({{ 64 * g }}u, {{ 64 * g + 1 }}u, {{ 64 * g + 2 }}u, {{ 64 * g + 3 }}u) < vec4u(params.kv_tokens);
{% for r in eight %}
            s{{ r }}_{{ g }} = select(vec4f(LOWEST), s{{ r }}_{{ g }}, inside{{ g }});
{% endfor %}
{% endfor %}
        }
{% for r in eight %}
        let most{{ r }} = max(s{{ r }}_0, s{{ r }}_1);
        let own_top{{ r }} = max(max(most{{ r }}.x, most{{ r }}.y), max(most{{ r }}.z, most{{ r }}.w));
{% endfor %}
{{ tell("own_top") -}}
{% for h in range(2) %}
        var new_top{{ h }} = vec4f({% for r in range(4 * h, 4 * h + 4) %}top{{ r }}{{ ", " if r % 4 < 3 }}{% endfor %});
{% endfor %}
        for (var i = 0u; i < 16u; i++) {
            new_top0 = max(new_top0, weights[2u * (i * {{ down }}u + down)]);
            new_top1 = max(new_top1, weights[2u * (i * {{ down }}u + down) + 1u]);
        }
{% for r in eight %}
        {
            let new_top = new_top{{ r // 4 }}[{{ r % 4 }}];
            let shrink = exp2(top{{ r }} - new_top);
            top{{ r }} = new_top;
            s{{ r }}_0 = exp2(s{{ r }}_0 - new_top);
            s{{ r }}_1 = exp2(s{{ r }}_1 - new_top);
            sum{{ r }} = sum{{ r }} * shrink + dot(s{{ r }}_0 + s{{ r }}_1, vec4f(1.0));
            y{{ r }}_0 *= shrink;
            y{{ r }}_1 *= shrink;
        }
{% endfor %}
        let parts = min({{ 128 // v_keys }}u, (params.kv_tokens - tile + {{ v_keys - 1 }}u) / {{ v_keys }}u);
        for (var part = 0u; part < parts; part++) {
            workgroupBarrier();
{% for g in range(2) %}
            if ((across + {{ 16 * g }}u) / {{ v_keys // 4 }}u == part) {
                let turn = 2u * (across % {{ v_keys // 4 }}u);
                let at = turn * {{ 2 * q_line }}u + (down ^ turn) % {{ down }}u;
{% for i in four %}
{% for h in range(2) %}
                weights[at + {{ i * q_line + h * down }}u] = vec4f({% for r in range(4 * h, 4 * h + 4) %}s{{ r }}_{{ g }}.{{ "xyzw"[i] }}{{ ", " if r % 4 < 3 }}{% endfor %});
{% endfor %}
{% endfor %}
            }
{% endfor %}
{% for n in range(v_loads) %}
            stage[{{ n * threads }}u + thread] = next_v{{ n }};
{% endfor %}
            workgroupBarrier();
            if (part + 1u < parts) {
{{ fetch_v("tile + (part + 1u) * %du" % v_keys) }}
            } else {
{{ fetch("tile + 128u", "0u") }}
            }
{% for key in range(v_keys) %}
            {
{% for h in range(2) %}
                let w{{ h }} = weights[{{ key * q_line + h * down }}u + (down ^ {{ 2 * (key // 4) }}u) % {{ down }}u];
                let v{{ h }} = stage[{{ 32 * key + 16 * h }}u + across];
{% endfor %}
{% for r in eight %}
{% for h in range(2) %}
                y{{ r }}_{{ h }} += w{{ r // 4 }}.{{ "xyzw"[r % 4] }} * v{{ h }};
{% endfor %}
{% endfor %}
            }
{% endfor %}
        }
    }

    workgroupBarrier();
{{ tell("sum") -}}
    var total0 = vec4f();
    var total1 = vec4f();
    for (var i = 0u; i < 16u; i++) {
        total0 += weights[2u * (i * {{ down }}u + down)];
        total1 += weights[2u * (i * {{ down }}u + down) + 1u];
    }
    let y_head = params.y_offset + head * params.y_head_stride;
{% for r in eight %}
    {
        let query = first_query + {{ 4 * down * (r // 4) + r % 4 }}u + 4u * down;
        let y_row = (y_head + query * params.y_stride) / 4u;
        if (query < params.q_tokens) {
            y[y_row + across] = y{{ r }}_0 / total{{ r // 4 }}[{{ r % 4 }}];
            y[y_row + across + 16u] = y{{ r }}_1 / total{{ r // 4 }}[{{ r % 4 }}];
        }
    }
{% endfor %}
}
