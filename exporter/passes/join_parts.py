"""A tensor that lies in several shards becomes one weight again: its parts and their Concat go away.

Requires: nothing; `exporter/link.py` writes such tensors as `NAME.part0`, … and a Concat `NAME.join`.
Ensures: every weight is one initializer under the name that the manifest uses, the joined ones without
data, since no single place holds it.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.link import JOIN


def join_parts(model: ir.Model) -> None:
    graph = model.graph
    for node in [n for n in graph if n.op_type == "Concat" and (n.name or "").endswith(JOIN)]:
        joined = node.outputs[0]
        whole = ir.Value(name=joined.name, shape=joined.shape, type=joined.type)
        joined.name = None
        graph.initializers[whole.name] = whole
        for user, index in list(joined.uses()):
            user.replace_input_with(index, whole)
        parts = list(node.inputs)
        graph.remove(node, safe=True)
        for part in parts:
            del graph.initializers[part.name]
