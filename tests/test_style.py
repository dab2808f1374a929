"""House rules that a tool can check: lint, types, file sizes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from exporter.packages import node_package

ROOT = Path(__file__).parents[1]
MOST_LINES = 400


def test_python_is_lint_free_and_formatted():
    for arguments in (["check", "-q"], ["format", "-q", "--check"]):
        run = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr


def test_the_runtimes_types_check_strictly():
    node_package("typescript")
    node_package("@webgpu/types")
    compiler = shutil.which("tsc", path=str(ROOT / "node_modules" / ".bin"))
    assert compiler, "expected npm to install the command tsc"
    run = subprocess.run(
        [compiler, "-p", "tests/runtime/tsconfig.json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


def test_no_source_file_is_longer_than_400_lines():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    sources = [ROOT / name for name in files if name.endswith((".py", ".js", ".mjs", ".wgsl", ".css", ".j2"))]
    assert len(sources) > 50
    long = [path.name for path in sources if path.exists() and path.read_text("utf-8").count("\n") > MOST_LINES]
    assert not long
