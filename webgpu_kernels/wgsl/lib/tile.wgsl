{# A register tile of a matrix product: named f32 sums, since an array indexed by a loop would live in memory.
   Loops around it are kept flat: on the software adapter a nest of loops takes twice the time. #}
{# `thread_tile(group, index)`: the tile (column, row) of a thread, in tiles. Threads lie along the columns first, at most
   8 of 64; see Tile in grid.py. `count` is the number of columns. #}
{% macro threads(columns, count) %}
override TILES_ACROSS: u32 = min(8u, ({{ count }} + {{ columns - 1 }}u) / {{ columns }}u);
override TILES_DOWN: u32 = 64u / TILES_ACROSS;

fn thread_tile(group: vec3u, index: u32) -> vec2u {
    let down = index / TILES_ACROSS;
    // Threads that are left over take a tile beyond every image.
    return vec2u(group.x * TILES_ACROSS + index % TILES_ACROSS, select(0xffffffu, group.y * TILES_DOWN + down, down < TILES_DOWN));
}
{% endmacro %}
{# Zero sums for `rows` by `columns` outputs, and the columns' rows of W: `row_of` is text with %s for the column. #}
{% macro begin(rows, columns, row_of) %}
{% for c in range(columns) %}
    let weight_row{{ c }} = weight_row({{ row_of % ("column + %du" % c) }});
{% for r in range(rows) %}
    var sum{{ r }}_{{ c }} = 0.0;
{% endfor %}
{% endfor %}
{% endmacro %}
{# One step: `vectors` vec4f along K. The caller's text is an expression for vector `v` of row `r`; the weights of
   column c stand in w<c>, a vec4f or (vectors > 1) a matrix of them. #}
{% macro accumulate(rows, columns, vectors) %}
{% for r in range(rows) %}
{% for v in range(vectors) %}
        let v{{ r }}_{{ v }} = {{ caller(r, v) | trim }};
{% for c in range(columns) %}
        sum{{ r }}_{{ c }} += dot(v{{ r }}_{{ v }}, w{{ c }}{{ "[%d]" % v if vectors > 1 }});
{% endfor %}
{% endfor %}
{% endfor %}
{% endmacro %}
{% macro four(row, column) -%}
vec4f({% for i in range(4) %}sum{{ row }}_{{ column + i }}{{ ", " if i < 3 }}{% endfor %})
{%- endmacro %}
{# `store_four(row, column, sums)` for every four columns of the tile; `columns` is a multiple of 4. With `half` the sums
   of the tile's columns from there on follow those of its first ones. #}
{% macro end(rows, columns, half=0) %}
{% for r in range(rows) %}
{% for c in range(0, half or columns, 4) %}
    store_four(row + {{ r }}u, column + {{ c }}u, {{ four(r, c) }}{{ ", " ~ four(r, half + c) if half }});
{% endfor %}
{% endfor %}
{% endmacro %}
