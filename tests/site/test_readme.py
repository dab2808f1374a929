"""README, CI and package say the same."""

from __future__ import annotations

import re
import tomllib

from exporter.packages import ROOT


def test_ci_runs_the_command_of_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^.*build\.py test$", readme.split("## Run the tests")[1], re.MULTILINE)
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == command


def test_every_file_that_the_readme_lists_exists():
    tree = (ROOT / "README.md").read_text("utf-8").split("## What is where")[1].split("```")[1]
    inside = re.findall(r"(?:^  |\s{2,})([\w/]+\.py|[\w]+/)\s", tree, re.MULTILINE)
    assert len(inside) > 12
    for name in inside:
        assert (ROOT / "exporter" / name).exists() or (ROOT / name).exists(), name


def test_versions_agree():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"\n## {settings['version']}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    pinned = [*settings["dependencies"], *sum(settings["optional-dependencies"].values(), [])]
    assert all(re.fullmatch(r"[\w-]+(\[\w+\])?==[\w.]+(; .+)?", one) for one in pinned)
