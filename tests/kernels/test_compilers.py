"""Every shader compiles: those that need no feature in naga, Firefox's compiler; the others in Dawn's Tint.

Most of the others run in test_kernels.py, too, but subgroup matrices on no software adapter.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.kernels import lavapipe
from tests.kernels.naga import compile_all, shaders
from webgpu_kernels import all_kernels


def test_every_shader_that_needs_no_feature_compiles_in_naga() -> None:
    found = compile_all()
    assert found["errors"] == {}
    assert found["baselines"] > 250 and found["others"] > 20


def _compiled(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    setup = lavapipe.ensure()
    command = [setup.node, str(Path(__file__).with_name("compile_null.mjs")), str(setup.package)]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_shader_that_needs_features_compiles_where_all_are_there() -> None:
    jobs = [
        {
            "label": f"{kernel.name} {rendered.variant.name} {rendered.options}",
            "wgsl": rendered.wgsl,
            "constants": constants,
            "limits": rendered.limits,
        }
        for kernel in all_kernels().values()
        for rendered, constants in shaders(kernel)
        if rendered.variant.features
    ]
    found = _compiled(jobs)
    assert found["errors"] == {}
    assert sum("subgroup_matrix" in job["wgsl"] for job in jobs) > 10 and found["pipelines"] > 0


def test_a_shader_that_does_not_compile_is_told() -> None:
    broken = {"label": "broken", "wgsl": "\nlet x = nonsense;\n", "constants": {}, "limits": {}}
    assert "line 2" in _compiled([broken])["errors"]["broken"]
