"""De-normalise, unpatchify: Mul(std), Add(mean), Reshape, Transpose, Reshape become `LatentsUnpack`."""

from __future__ import annotations

import onnx_ir as ir

from exporter.passes.match import attribute, is_stored, only_user, replace


def fuse_latents_unpack(model: ir.Model) -> None:
    graph = model.graph
    for product in [n for n in graph if n.op_type == "Mul"]:
        std = next((i for i in product.inputs if is_stored(i)), None)
        add = only_user(product.outputs[0], "Add")
        first = only_user(add.outputs[0], "Reshape") if add is not None else None
        order = only_user(first.outputs[0], "Transpose") if first is not None else None
        last = only_user(order.outputs[0], "Reshape") if order is not None else None
        if std is None or last is None or list(attribute(order, "perm")) != [2, 0, 3, 1, 4]:
            continue
        latents = next(i for i in product.inputs if i is not std)
        mean = next(i for i in add.inputs if i is not product.outputs[0])
        replace(graph, last, "LatentsUnpack", [latents, std, mean], name="latents_unpack")
        for node in (order, first, add, product):
            graph.remove(node, safe=True)
