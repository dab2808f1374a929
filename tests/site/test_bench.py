"""`build.py bench` on the software adapter, with a product small enough to take no time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import build
from exporter.bench import Wanted, lines_of
from exporter.bench.measure import Measured, shape_text, write_site
from exporter.bench.shapes import pocket_shapes, product_shapes
from exporter.bench.table import table
from exporter.packages import ROOT

ARGUMENTS = ["bench", "--adapter", "software", "--model", "matmul", "--product", "9x130x256", "--runs", "1"]


def bench(*arguments: str) -> str:
    """What the command prints, in a process of its own, as a user runs it."""
    command = [sys.executable, str(ROOT / "build.py"), *ARGUMENTS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_prints_one_table_and_writes_the_same_numbers_as_json(tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    text = bench("--only", "binary|ternary", "--json", str(file))
    assert "adapter: " in text and "SwiftShader" in text and re.search(r"browser: \d+\.", text)
    numbers = json.loads(file.read_text("utf-8"))
    rows = numbers["kernels"]
    assert {row["options"] for row in rows} == {"binary", "ternary"}
    assert all(row["shape"] == "9x130x256" and row["ms"] > 0 for row in rows)
    for row in rows:
        assert row["tflops"] == pytest.approx(2 * 9 * 130 * 256 / row["ms"] / 1e9)
        assert 0 < row["share"] < 1.5
        assert f"| {row['variant']} " in text
        assert row["relative_error"] is None if row["variant"] == "f32" else 0 < row["relative_error"] < 2e-2
    errors = {row["variant"]: row["relative_error"] for row in rows if row["options"] == "binary"}
    assert errors["f32_staged"] < 1e-5 < errors["int8_rows"]
    assert numbers["ceilings"]["f32"] > 1e8 and numbers["ceilings"]["copy"] > 1e7
    assert len([line for line in text.splitlines() if line.startswith("| matmul")]) == len(rows)


def test_a_forced_variant_is_measured_alone() -> None:
    text = bench("--only", "linear ternary", "--variant", "f32")
    rows = [line for line in text.splitlines() if line.startswith("| matmul")]
    assert len(rows) == 1 and "| f32 " in rows[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "("], "expected a regular expression"),
        (["--product", "9x130x100"], "K a multiple of 128"),
        (["--model", "klein-9b"], "klein-4b"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    assert build.main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_shapes_name_every_tensor_that_plans_bind(tmp_path: Path) -> None:
    models = {"matmul": product_shapes(4, 130, 256), "pocket": pocket_shapes("ternary")}
    for shapes in models.values():
        for component in shapes["components"].values():
            resident = {record.get("expands_to", {}).get("name", name) for name, record in component["tensors"].items()}
            bound = [target for one in component["plan"]["dispatches"] for target in one["bindings"].values()]
            assert {target for target in bound if isinstance(target, str)} <= resident
    write_site(tmp_path / "site", models)
    kernels = json.loads((tmp_path / "site" / "kernels" / "index.json").read_text("utf-8"))
    assert {"linear", "attention", "conv2d"} <= {entry["kernel"] for entry in kernels}


def test_a_report_says_what_failed_and_what_has_no_arithmetic() -> None:
    facts = {"adapter": {"vendor": "maker", "fallback": False}, "version": "1.2", "timestamps": True, "features": ["a"]}
    kernel = {"model": "m", "component": "c", "kernel": "swiglu", "options": "", "shape": "rows=4", "count": 2}
    found = Measured(facts, {"f32": 5e12, "copy": 1e12})
    found.kernels = [
        {**kernel, "variant": "f32", "ms": 2.0, "gb_per_s": 512.0, "share": 0.5},
        {**kernel, "variant": "int8_rows", "ms": 2.0, "relative_error": 7.2e-3},
        {**kernel, "variant": "f16", "error": "no such thing"},
    ]
    whole = {"model": "m", "component": "c", "size": "64x64", "ms": 5.0, "kernels": "matmul: f16"}
    found.wholes = [{**whole, "choice_ms": {"compile": 1200.4, "measure": 310}}]
    lines = lines_of(found)
    assert any("matmul: f16" in line and "1200 + 310 ms" in line for line in lines)
    assert "ceilings: f32 10 TFLOP/s, copy 1e+03 GB/s" in lines
    assert any("512 GB/s" in line and "50 %" in line for line in lines)
    assert any("| int8_rows " in line and "| 7e-03 |" in line for line in lines)
    assert any("failed" in line and "f16" in line for line in lines)
    assert len({len(line) for line in lines if line.startswith("|")}) == 2
    assert table([{"a": "1"}]) == ["| a |", "|---|", "| 1 |"]


def test_shapes_read_like_products() -> None:
    assert shape_text({"kernel": "linear", "sizes": {"rows": 4, "N": 8, "K": 16, "GROUP": 128}}) == "4x8x16"
    assert Wanted(("matmul",), ((64, 64),), (1, 2, 128)).runs == 5
