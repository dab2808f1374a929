"""Compiles every kernel's variants that need no feature, under all options, with naga, Firefox's compiler, on lavapipe.

A program of its own, since the driver's environment must be there when it starts: it prints one JSON line
`{"baselines": count, "others": count, "errors": {label: message}}`. `compile_all` starts it.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kernels import lavapipe
from webgpu_kernels import Kernel, Rendered, all_kernels, render_all

ROOT = Path(__file__).resolve().parents[2]


def shaders(kernel: Kernel) -> Iterator[tuple[Rendered, dict[str, float]]]:
    """Shaders of all variants and constants for them, under every combination of options; equal texts once."""
    seen = set()
    cases = kernel.cases()
    for values in itertools.product(*kernel.options.values()):
        options = dict(zip(kernel.options, values, strict=True))
        case = next((case for case in cases if kernel.complete(case.options) == options), cases[0])
        constants = {name: float(value) for name, value in case.constants.items()}
        for rendered in render_all(kernel.name, options):
            if rendered.wgsl not in seen:
                seen.add(rendered.wgsl)
                yield rendered, constants


def _main() -> None:
    import wgpu

    adapter = wgpu.gpu.request_adapter_sync()
    core, wide = adapter.request_device_sync(), adapter.request_device_sync(required_limits=adapter.limits)
    errors: dict[str, str] = {}
    counts = {"baselines": 0, "others": 0}
    for kernel in all_kernels().values():
        for rendered, constants in shaders(kernel):
            if rendered.variant.features:
                continue
            counts["baselines" if rendered.variant.name == kernel.variants[0].name else "others"] += 1
            device = wide if rendered.limits else core
            try:
                module = device.create_shader_module(code=rendered.wgsl)
                compute = {"module": module, "entry_point": "main", "constants": constants}
                device.create_compute_pipeline(layout="auto", compute=compute)
            except wgpu.GPUError as error:
                errors[f"{kernel.name} {rendered.variant.name} {rendered.options}"] = str(error)
    print(json.dumps({**counts, "errors": errors}))


def compile_all() -> dict[str, Any]:
    """What the program found.

    Raises:
        AssertionError: it ended without an answer.
    """
    environment = {**os.environ, **lavapipe.ensure().environment}
    command = [sys.executable, "-m", "tests.kernels.naga"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"wgpu ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    _main()
