"""Kernels compile where the browser's compiler is naga, not Dawn's Tint, too."""

from __future__ import annotations

from tests.kernels.naga import compile_all


def test_every_shader_that_needs_no_feature_compiles_in_naga() -> None:
    found = compile_all()
    assert found["errors"] == {}
    assert found["baselines"] > 250 and found["others"] > 20
