requires packed_4x8_integer_dot_product;
// y = softmax(q·kᵀ · SCALE) · v as attention.wgsl, for heads of 128 channels, by dot products of four int8 each. q, k and v
// come as codes with scales, in tiles of 64 tokens of a head (heads_to_int8.wgsl): q and k with a scale a token, four
// channels in a word, v with a scale a channel and tile, four tokens in a word, and beside the scales sums of the codes.
{% set fours = range(4) %}
{% set threads = 16 * down %}
{% set queries = 4 * down %}
{% set loads = 512 // threads %}
//
// A workgroup walks over all keys for {{ queries }} queries of one head, a tile at a time. A thread has four queries, in a tile
// the scores of four keys, and then two fours of channels. A row's weights of a tile are codes p, too: 255 · 2^(score − the
// tile's top), so that no tile's weights are too small for 8 bits; what the tile counts for stands beside them. As int8 they
// are p − 128: Σ p·v = Σ (p − 128)·v + 128 · Σ v.

{{ interface }}

const LOWEST = -1.0e30; // score of a key past the end; infinities are not portable in WGSL
// f32 has every integer within 2^22 of this one, and its bits count as they do: sums of dot products need no conversion.
const BASE = 12582912.0;
const ZERO = 0x4b400000; // its bits
const LOG2_255 = 7.994353436858858;
// A row's sums are in units of 2^top. That stays while no tile's top exceeds it by more.
const GROWTH = 10.0;

// Lines of equal four (channels or keys). In `weights` a row's place is turned by the four, so that threads that store
// next to each other meet different memory banks.
var<workgroup> staged_q: array<vec4u, {{ 32 * down }}>; // [four of channels][four of queries]
var<workgroup> staged: array<vec4u, 512>; // k: [four of channels][four of keys]; v: [four of keys][four of channels]
var<workgroup> weights: array<vec4u, {{ 16 * down }}>; // [four of keys][four of queries ^ turn]
var<workgroup> shares: array<vec4f, {{ 16 * down }}>; // [four of keys][four of queries]: tops, at the end sums

// Integers to which ZERO was added.
fn to_float(sums: vec4i) -> vec4f {
    return bitcast<vec4f>(sums) - BASE;
}

// The least bytes of four words.
fn pack(codes: vec4u) -> u32 {
    return (codes.x & 0xffu) | ((codes.y & 0xffu) << 8u) | ((codes.z & 0xffu) << 16u) | (codes.w << 24u);
}

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
    // Of tiles of 64 queries this workgroup has a part.
    let q_tile = workgroup.x / {{ 16 // down }}u * HEADS + head;
    let q_part = workgroup.x % {{ 16 // down }}u * {{ down }}u;
    for (var i = thread; i < {{ 32 * down }}u; i += {{ threads }}u) {
        staged_q[i] = q[q_tile * 512u + i / {{ down }}u * 16u + q_part + i % {{ down }}u];
    }
    let q_scale = q_scales[q_tile * 16u + q_part + down] * (SCALE * 1.4426950408889634); // for scores of base 2
    var top = vec4f(LOWEST);
    var sum = vec4f(); // this thread's share of the weights
    {% for r in fours %}
    var y{{ r }}_0 = vec4f();
    var y{{ r }}_1 = vec4f();
    {% endfor %}
    for (var tile = 0u; tile * 64u < params.kv_tokens; tile++) {
        let kv_tile = tile * KV_HEADS + kv_head;
        workgroupBarrier();
        {% for n in range(loads) %}
        staged[{{ n * threads }}u + thread] = k[kv_tile * 512u + {{ n * threads }}u + thread];
        {% endfor %}
        let k_scale = k_scales[kv_tile * 16u + across];
        workgroupBarrier();
        {% for r in fours %}
        var dots{{ r }} = vec4i(ZERO);
        {% endfor %}
        {% for line in range(0, 32, 2) %}
        {
            {% for p in range(2) %}
            let q{{ p }} = staged_q[down + {{ (line + p) * down }}u];
            let k{{ p }} = staged[across + {{ (line + p) * 16 }}u];
            {% endfor %}
            {% for r in fours %}
            dots{{ r }} += vec4i(
                {% for i in "xyzw" %}
                dot4I8Packed(q0.{{ "xyzw"[r] }}, k0.{{ i }}) + dot4I8Packed(q1.{{ "xyzw"[r] }}, k1.{{ i }}),
                {% endfor %}
            );
            {% endfor %}
        }
        {% endfor %}
        {% for r in fours %}
        var s{{ r }} = to_float(dots{{ r }}) * k_scale; // without the query's scale
        {% endfor %}
        var inside = vec4<bool>(true);
        if (tile * 64u + 64u > params.kv_tokens) {
            inside = tile * 64u + 4u * across + vec4u(0u, 1u, 2u, 3u) < vec4u(params.kv_tokens);
            {% for r in fours %}
            s{{ r }} = select(vec4f(LOWEST), s{{ r }}, inside);
            {% endfor %}
        }
        shares[across * {{ down }}u + down] = vec4f(
            {% for r in fours %}
            max(max(s{{ r }}.x, s{{ r }}.y), max(s{{ r }}.z, s{{ r }}.w)),
            {% endfor %}
        );
        workgroupBarrier();
        {% for n in range(loads) %}
        staged[{{ n * threads }}u + thread] = v[kv_tile * 512u + {{ n * threads }}u + thread];
        {% endfor %}
        var most = vec4f(LOWEST);
        for (var i = 0u; i < 16u; i++) {
            most = max(most, shares[i * {{ down }}u + down]);
        }
        let tile_top = most * q_scale;
        let rises = tile_top > top + GROWTH; // so does the first while top is the lowest
        if (any(rises)) {
            let shrink = select(vec4f(1.0), exp2(top - tile_top), rises);
            top = select(top, tile_top, rises);
            sum *= shrink;
            {% for r in fours %}
            y{{ r }}_0 *= shrink.{{ "xyzw"[r] }};
            y{{ r }}_1 *= shrink.{{ "xyzw"[r] }};
            {% endfor %}
        }
        let count = exp2(tile_top - top) / 255.0; // what a code of this tile counts for
        let from_top = LOG2_255 - tile_top;
        {% for r in fours %}
        let p{{ r }} = select(vec4f(), exp2(s{{ r }} * q_scale.{{ "xyzw"[r] }} + from_top.{{ "xyzw"[r] }}), inside);
        {% endfor %}
        weights[across * {{ down }}u + (down ^ ((2u * across) & 6u)) % {{ down }}u] = vec4u(
            {% for r in fours %}
            pack(bitcast<vec4u>(p{{ r }} + BASE)),
            {% endfor %}
        ) ^ vec4u(0x80808080u);
        // Of the weights before rounding: y is nearer to the exact one than over the sum of the rounded.
        sum += count * vec4f(
            {% for r in fours %}
            (p{{ r }}.x + p{{ r }}.y) + (p{{ r }}.z + p{{ r }}.w),
            {% endfor %}
        );
        {% for c in range(2) %}
        let v_scale{{ c }} = v_scales[kv_tile * 64u + {{ 16 * c }}u + across];
        let v_sum{{ c }} = ZERO + 128 * vec4i(v_scales[kv_tile * 64u + {{ 32 + 16 * c }}u + across]);
        {% endfor %}
        workgroupBarrier();
        {% for r in fours %}
        {% for c in range(2) %}
        var sums{{ r }}_{{ c }} = v_sum{{ c }};
        {% endfor %}
        {% endfor %}
        {% for line in range(0, 16, 2) %}
        {
            {% for i in range(2) %}
            let w{{ i }} = weights[{{ (line + i) * down }}u + (down ^ {{ 2 * (line + i) % 8 }}u) % {{ down }}u];
            {% for c in range(2) %}
            let v{{ c }}_{{ i }} = staged[across + {{ (line + i) * 32 + 16 * c }}u];
            {% endfor %}
            {% endfor %}
            {% for r in fours %}
            {% for c in range(2) %}
            sums{{ r }}_{{ c }} += vec4i(
                {% for i in "xyzw" %}
                dot4I8Packed(w0.{{ "xyzw"[r] }}, v{{ c }}_0.{{ i }}) + dot4I8Packed(w1.{{ "xyzw"[r] }}, v{{ c }}_1.{{ i }}),
                {% endfor %}
            );
            {% endfor %}
            {% endfor %}
        }
        {% endfor %}
        {% for r in fours %}
        {% for c in range(2) %}
        y{{ r }}_{{ c }} += to_float(sums{{ r }}_{{ c }}) * v_scale{{ c }} * count.{{ "xyzw"[r] }};
        {% endfor %}
        {% endfor %}
    }
    shares[across * {{ down }}u + down] = sum;
    workgroupBarrier();
    var total = vec4f();
    for (var i = 0u; i < 16u; i++) {
        total += shares[i * {{ down }}u + down];
    }
    let y_head = params.y_offset + head * params.y_head_stride;
    {% for r in fours %}
    {
        let query = workgroup.x * {{ queries }}u + 4u * down + {{ r }}u;
        let y_row = (y_head + query * params.y_stride) / 4u;
        if (query < params.q_tokens) {
            y[y_row + across] = y{{ r }}_0 / total.{{ "xyzw"[r] }};
            y[y_row + across + 16u] = y{{ r }}_1 / total.{{ "xyzw"[r] }};
        }
    }
    {% endfor %}
}
