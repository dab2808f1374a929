// y = softmax(q·kᵀ · SCALE) · v for each head; q, y: f32[q_tokens, HEADS, HEAD_SIZE] and
// k, v: f32[kv_tokens, KV_HEADS, HEAD_SIZE], strided views read as vec4f.
{% if mask == "causal" %}
// Query i sees key j where j ≤ i and key_mask[j] ≠ 0; a query that sees no key gives zeros.
{% endif %}
//
// A workgroup walks over all keys for 32 queries of one head, a tile of KEYS keys at a time, and keeps
// running maxima and sums of the softmax, so scores never leave it. The same thread computes a 4x4 block
// of scores (4 queries, 4 keys) and then 4 queries by 4 vectors of channels of the output. Scores cross
// between the threads through workgroup memory: two barriers a tile. q, k and v come straight from
// their buffers; neighbouring threads read the same ones.
{% if quads %}
//
// Four neighbouring threads have the same keys: each loads a fourth of k and of v for all of them.
enable subgroups;
diagnostic(off, subgroup_uniformity);
{% endif %}

{{ interface }}

const QUADS = 8u; // a workgroup has 4 * QUADS queries, thread quad q those at q, q + QUADS, …
const LOWEST = -3.0e38; // score of an unseen key; infinities are not portable in WGSL
override VECTORS: u32 = HEAD_SIZE / 4u;
override SLICES: u32 = (VECTORS + 3u) / 4u; // threads side by side, each with 4 vectors of channels
override THREADS: u32 = QUADS * SLICES;
// 4 keys a thread, but no more than workgroup memory holds: heads of 512 leave a quarter of the threads
// without scores.
override KEY_SLICES: u32 = min(SLICES, 24u);
override KEYS: u32 = 4u * KEY_SLICES;

var<workgroup> weights: array<vec4f, KEYS * QUADS>; // [key][quad]: softmax weights of 4 queries
var<workgroup> reduced: array<vec4f, KEY_SLICES * QUADS>; // [slice][quad]: maxima, at the end sums

{% set four = range(4) %}
@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3u,
    @builtin(local_invocation_index) thread: u32,
) {
    let quad = thread % QUADS;
    let slice = thread / QUADS;
    let head = workgroup.y;
    let kv_head = head / (HEADS / KV_HEADS);
    let first_query = workgroup.x * 4u * QUADS;
    // Queries past the end repeat the last one, channels past the end the last vector; neither is stored.
    let q_head = params.q_offset + head * params.q_head_stride;
    {% for r in four %}
    let query{{ r }} = first_query + quad + {{ r }}u * QUADS;
    let q_row{{ r }} = (q_head + min(query{{ r }}, params.q_tokens - 1u) * params.q_stride) / 4u;
    {% endfor %}
    let k_head = params.k_offset + kv_head * params.k_head_stride;
    let v_head = params.v_offset + kv_head * params.v_head_stride;
    {% if quads %}
    let own = thread % 4u; // of four threads
    let own_vector = min(slice + own * SLICES, VECTORS - 1u);
    {% else %}
    {% for c in four %}
    let vector{{ c }} = min(slice + {{ c }}u * SLICES, VECTORS - 1u);
    {% endfor %}
    {% endif %}
    {% if mask == "causal" %}
    let keys_end = min(params.kv_tokens, first_query + 4u * QUADS);
    {% else %}
    let keys_end = params.kv_tokens;
    {% endif %}

    var top = vec4f(LOWEST); // of each query: the largest score so far
    var sum = vec4f(); // of each query: this thread's share of the weights
    {% for r in four %}{% for c in four %}
    var y{{ r }}{{ c }} = vec4f();
    {% endfor %}{% endfor %}
    for (var tile = 0u; tile < keys_end; tile += KEYS) {
        let key = tile + 4u * slice;
        {% for j in four %}
        var s{{ j }} = vec4f(LOWEST); // scores of 4 queries and key + {{ j }}
        {% endfor %}
        if (slice < KEY_SLICES) {
            {% if quads %}
            let own_k_row = (k_head + min(key + own, params.kv_tokens - 1u) * params.k_stride) / 4u;
            {% else %}
            {% for j in four %}
            let k_row{{ j }} = (k_head + min(key + {{ j }}u, params.kv_tokens - 1u) * params.k_stride) / 4u;
            {% endfor %}
            {% endif %}
            {% for r in four %}{% for j in four %}
            var s{{ r }}{{ j }} = 0.0;
            {% endfor %}{% endfor %}
            for (var i = 0u; i < VECTORS; i++) {
                {% for r in four %}
                let q{{ r }} = q[q_row{{ r }} + i];
                {% endfor %}
                {% if quads %}
                let own_k = k[own_k_row + i];
                {% endif %}
                {% for j in four %}
                let k{{ j }} = {{ "quadBroadcast(own_k, %du)" % j if quads else "k[k_row%d + i]" % j }};
                {% endfor %}
                {% for r in four %}{% for j in four %}
                s{{ r }}{{ j }} += dot(q{{ r }}, k{{ j }});
                {% endfor %}{% endfor %}
            }
            {% for j in four %}
            {% if mask == "causal" %}
            let seen{{ j }} = key + {{ j }}u < keys_end && key_mask[min(key + {{ j }}u, params.kv_tokens - 1u)] != 0u;
            let visible{{ j }} = vec4<bool>(
                {% for r in four %}
                seen{{ j }} && key + {{ j }}u <= query{{ r }},
                {% endfor %}
            );
            {% else %}
            let visible{{ j }} = vec4<bool>(key + {{ j }}u < keys_end);
            {% endif %}
            s{{ j }} = select(s{{ j }}, vec4f(s0{{ j }}, s1{{ j }}, s2{{ j }}, s3{{ j }}) * SCALE, visible{{ j }});
            {% endfor %}
            reduced[slice * QUADS + quad] = max(max(s0, s1), max(s2, s3));
        }
        workgroupBarrier();

        var new_top = top;
        for (var i = 0u; i < KEY_SLICES; i++) {
            new_top = max(new_top, reduced[i * QUADS + quad]);
        }
        let shrink = exp(top - new_top);
        top = new_top;
        {% for j in four %}
        let w{{ j }} = select(vec4f(), exp(s{{ j }} - top), s{{ j }} > vec4f(LOWEST));
        {% endfor %}
        sum = sum * shrink + ((w0 + w1) + (w2 + w3));
        if (slice < KEY_SLICES) {
            {% for j in four %}
            weights[(4u * slice + {{ j }}u) * QUADS + quad] = w{{ j }};
            {% endfor %}
        }
        workgroupBarrier();

        {% for r in four %}{% for c in four %}
        y{{ r }}{{ c }} *= shrink[{{ r }}];
        {% endfor %}{% endfor %}
        let count = min(KEYS, keys_end - tile);
        for (var j = 0u; j < count; j++) {
            let w = weights[j * QUADS + quad];
            let v_row = (v_head + (tile + j) * params.v_stride) / 4u;
            {% if quads %}
            let own_v = v[v_row + own_vector];
            {% endif %}
            {% for c in four %}
            let v{{ c }} = {{ "quadBroadcast(own_v, %du)" % c if quads else "v[v_row + vector%d]" % c }};
            {% endfor %}
            {% for r in four %}{% for c in four %}
            y{{ r }}{{ c }} += w[{{ r }}] * v{{ c }};
            {% endfor %}{% endfor %}
        }
    }

    if (slice < KEY_SLICES) {
        reduced[slice * QUADS + quad] = sum;
    }
    workgroupBarrier();
    var total = vec4f();
    for (var i = 0u; i < KEY_SLICES; i++) {
        total += reduced[i * QUADS + quad];
    }
    let inverse = select(vec4f(), 1.0 / total, total > vec4f());
    let y_head = params.y_offset + head * params.y_head_stride;
    {% for r in four %}
    if (query{{ r }} < params.q_tokens) {
        let y_row = (y_head + query{{ r }} * params.y_stride) / 4u;
        {% for c in four %}
        if (slice + {{ c }}u * SLICES < VECTORS) {
            y[y_row + slice + {{ c }}u * SLICES] = y{{ r }}{{ c }} * inverse[{{ r }}];
        }
        {% endfor %}
    }
    {% endfor %}
}
