"""ONNX graphs -> plans: lists of kernel dispatches with symbolic sizes (DESIGN.md §4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporter.errors import BadBundle
from exporter.lower.plan import lower_graph
from exporter.manifest import COMPONENTS


def lower_bundle(folder: Path | str) -> dict[str, dict[str, Any]]:
    """The plan of each component of a bundle.

    Raises:
        BadBundle: a graph that is missing or unreadable, or that the kernels cannot compute.
    """
    plans = {}
    for component in COMPONENTS:
        path = Path(folder) / f"{component}.onnx"
        try:
            model = ir.load(path)
        except (OSError, ValueError, RuntimeError) as error:
            raise BadBundle(f"{path}: an ONNX graph expected, {error}") from error
        plans[component] = lower_graph(model, component)
    return plans


__all__ = ["lower_bundle", "lower_graph"]
