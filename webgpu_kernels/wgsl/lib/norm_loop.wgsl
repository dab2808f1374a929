{#
A loop of a row's threads over `count` values, the body in the call block. Steps come in blocks of
`unroll`, so that their loads overlap: a row has few threads, and a GPU waits long for a load.
#}
{% macro each(index, count) %}
    {
        var at = lane;
        for (; at + {{ unroll - 1 }}u * LANES < {{ count }}; at += {{ unroll }}u * LANES) {
            {% for step in range(unroll) %}
            {
                let {{ index }} = at + {{ step }}u * LANES;
                {{ caller() | trim | indent(12) }}
            }
            {% endfor %}
        }
        for (; at < {{ count }}; at += LANES) {
            let {{ index }} = at;
            {{ caller() | trim | indent(8) }}
        }
    }
{% endmacro %}
