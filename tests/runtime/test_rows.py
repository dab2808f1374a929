"""Tensors too large for one binding: which pieces they get, and what their dispatches become."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page

from exporter.lower.operators.matmul import NO_EPILOGUE

LIMIT = 1024 * 1024


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    size = {"F16": 2, "F32": 4, "U32": 4}[dtype]
    for axis in shape:
        size *= axis
    return {"dtype": dtype, "shape": list(shape), "parts": [{"shard": 0, "offset": 8, "bytes": size}]}


# codes: 1,024 bytes a row, so 1,024 rows a binding; scales: 32; the table: 640, so 1,536 rows (12 steps of 128).
COMPONENT = {
    "tensors": {
        "m.codes": tensor("U32", 2500, 256),
        "m.scales": tensor("F16", 2500, 16),
        "m.bias": tensor("F32", 2500),
        "table": tensor("F16", 3000, 320),
        "kernel": tensor("F16", 256, 16, 16, 8),
    }
}


def linear(**bindings: Any) -> dict[str, Any]:
    return {
        "kernel": "linear",
        "options": {"weights": "binary", "bias": True, "aligned": True, "epilogue": "none"},
        "constants": {"N": 2500, "K": 8192, "GROUP": 512},
        "uniforms": {"rows": "rows", "x_offset": 0, "x_stride": 8192, **NO_EPILOGUE, "y_offset": 64, "y_stride": 2500},
        "bindings": {"x": 0, "codes": "m.codes", "scales": "m.scales", "bias": "m.bias", "y": 1, **bindings},
    }


EMBEDDING = {
    "kernel": "embedding",
    "options": {"weights": "f16"},
    "constants": {"COLUMNS": 320, "GROUP": 128},
    "uniforms": {"rows": "rows", "y_offset": 0, "y_stride": 320, "first_row": 0, "table_rows": 3000},
    "bindings": {"ids": 0, "weight": "table", "y": 1},
}


def plan(*dispatches: dict[str, Any]) -> dict[str, Any]:
    last = len(dispatches) - 1
    values = [
        {"name": "x", "role": "input", "dtype": "f32", "elements": 1},
        {"name": "t", "role": "temporary", "dtype": "f32", "elements": 1, "arena": 0, "first": 0, "last": last},
        {"name": "u", "role": "temporary", "dtype": "f32", "elements": 1, "arena": 0, "first": last, "last": last},
    ]
    return {
        "format": 3,
        "component": "denoiser",
        "symbols": ["rows"],
        "arenas": 1,
        "values": values,
        "loops": [],
        "dispatches": list(dispatches),
    }


def split(page: Page, document: dict[str, Any], limit: int = LIMIT) -> dict[str, Any]:
    script = """async ([plan, component, limit]) => {
      const { splitPlan } = await load("rows");
      let made = null;
      const error = await failure(() => { made = splitPlan(plan, component, limit); });
      return { made, error };
    }"""
    return page.evaluate(script, [document, COMPONENT, limit])


def test_a_plan_whose_tensors_fit_stays_as_it_is(calculator: Page) -> None:
    document = plan(linear(), EMBEDDING)
    assert split(calculator, document, 2**27)["made"] == document


def test_a_linear_is_computed_window_by_window(calculator: Page) -> None:
    made = split(calculator, plan(linear()))["made"]
    found = [(d["constants"]["N"], d["uniforms"]["y_offset"], d["bindings"]) for d in made["dispatches"]]
    starts = [(0, 1024), (1024, 1024), (2048, 452)]
    for (n, y_offset, bindings), (start, rows) in zip(found, starts, strict=True):
        assert n == rows and y_offset == ["add", 64, start]
        assert bindings["codes"] == {"tensor": f"m.codes@{start}" if start else "m.codes", "first": 0, "rows": rows}
        assert bindings["scales"] == {"tensor": "m.scales", "first": start, "rows": rows}
        assert bindings["bias"] == {"tensor": "m.bias", "first": start, "rows": rows}
        assert (bindings["x"], bindings["y"]) == (0, 1)


def test_a_linear_of_some_rows_is_cut_where_its_tensor_is(calculator: Page) -> None:
    window = lambda name: {"tensor": name, "first": 896, "rows": 256}  # noqa: E731
    narrow = linear(codes=window("m.codes"), scales=window("m.scales"), bias=window("m.bias"))
    narrow["constants"]["N"] = 256
    made = split(calculator, plan(narrow))["made"]["dispatches"]
    assert [d["bindings"]["codes"] for d in made] == [
        {"tensor": "m.codes", "first": 896, "rows": 128},
        {"tensor": "m.codes@1024", "first": 0, "rows": 128},
    ]
    assert [d["bindings"]["scales"]["first"] for d in made] == [896, 1024]
    assert [d["constants"]["N"] for d in made] == [128, 128]


def test_what_a_product_is_added_to_moves_with_its_columns(calculator: Page) -> None:
    gated = linear(residual=2, gate=0)
    gated["options"]["epilogue"] = "gate_residual"
    gated["uniforms"] |= {"residual_offset": 32, "gate_offset": 96}
    made = split(calculator, plan(gated))["made"]["dispatches"]
    places = [[d["uniforms"][name] for name in ("residual_offset", "gate_offset", "y_offset")] for d in made]
    assert places == [[["add", first, start] for first in (32, 96, 64)] for start in (0, 1024, 2048)]


@pytest.mark.parametrize(("first", "cut"), [(0, False), (896, True), (1024, False)])
def test_gates_are_not_parted_from_their_ups(calculator: Page, first: int, cut: bool) -> None:
    pairs = {name: {"tensor": f"m.{name}", "first": first, "rows": 512} for name in ("codes", "scales", "bias")}
    swiglu = linear(**pairs)
    swiglu["options"]["epilogue"] = "swiglu"
    swiglu["constants"]["N"] = 256
    found = split(calculator, plan(swiglu))
    if cut:
        assert found["error"]["code"] == "limit-too-low" and "m.codes" in found["error"]["message"]
        return
    (dispatch,) = found["made"]["dispatches"]
    assert dispatch["constants"]["N"] == 256 and dispatch["uniforms"] == swiglu["uniforms"]
    piece = f"m.codes@{first}" if first else "m.codes"
    assert dispatch["bindings"]["codes"] == {"tensor": piece, "first": 0, "rows": 512}


def test_an_embedding_looks_its_rows_up_window_by_window(calculator: Page) -> None:
    made = split(calculator, plan(EMBEDDING))["made"]["dispatches"]
    assert [(d["uniforms"]["first_row"], d["uniforms"]["table_rows"]) for d in made] == [(0, 1536), (1536, 1464)]
    assert [d["bindings"]["weight"]["tensor"] for d in made] == ["table", "table@1536"]
    assert all(d["constants"] == EMBEDDING["constants"] for d in made)


def test_lives_follow_their_dispatches(calculator: Page) -> None:
    made = split(calculator, plan(linear(), EMBEDDING, linear()))["made"]
    assert len(made["dispatches"]) == 3 + 2 + 3
    assert [(v["first"], v["last"]) for v in made["values"][1:]] == [(0, 7), (5, 7)]


@pytest.mark.parametrize(
    ("document", "limit", "said"),
    [
        (plan({**EMBEDDING, "kernel": "conv2d", "bindings": {"x": 0, "weight": "kernel", "y": 1}}), 600_000, "kernel"),
        (plan(EMBEDDING), 80_000, "m.codes"),  # not even 128 rows
    ],
)
def test_what_cannot_be_split_is_refused_by_name(
    calculator: Page, document: dict[str, Any], limit: int, said: str
) -> None:
    error = split(calculator, document, limit)["error"]
    assert error["code"] == "limit-too-low"
    assert said in error["message"] and f"binds at most {limit}" in error["message"]
