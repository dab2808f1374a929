"""torch module on the meta device -> ONNX model (onnx-ir) without weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import onnx_ir as ir
import torch
from onnxscript import optimizer

OPSET = 23


def export_module(module: torch.nn.Module, prefixes: tuple[str, ...]) -> ir.Model:
    """Export a component wrapper with its token counts as symbols.

    Args:
        module: on the meta device, with an `example()` method.
        prefixes: leading parts of parameter names to drop, so that initializers carry the names of
            the checkpoint.

    Returns:
        A model whose initializers have names, shapes and types but no data.
    """
    inputs, axes, output = module.eval().example()
    quiet = io.StringIO()
    for noisy in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=axes,
            optimize=False,
            verify=False,
            output_names=[output],
        )
    model = program.model
    parameters = {name for name, _ in module.named_parameters()}
    for initializer in list(model.graph.initializers.values()):
        if initializer.name in parameters:
            initializer.const_value = None
            prefix = next((p for p in prefixes if initializer.name.startswith(p)), "")
            initializer.name = initializer.name.removeprefix(prefix)
    optimizer.optimize_ir(model)
    return model
