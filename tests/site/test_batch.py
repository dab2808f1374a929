"""`build.py generate --prompts`: many pictures in one browser session, and runs that go on."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import build
from exporter import batch, generate
from exporter.errors import BadArguments, BitbrushError

SIZES = {"multiple": 16, "minimum": 32, "maximum": 512, "default": [64, 64]}
DEFAULTS = generate.Request("", 64, 48, 4, 7)
MODEL = {"id": "pocket-ternary", "name": "pocket", "variant": "ternary"}


def lines(path: Path, *jobs: dict) -> Path:
    path.write_text("\n".join(json.dumps(job, ensure_ascii=False) for job in jobs) + "\n", encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `build.py generate`."""
    capsys.readouterr()
    with ThreadPoolExecutor(1) as own_thread:  # the session's browser has Playwright's loop in this one
        code = own_thread.submit(build.main, ["generate", *map(str, arguments)]).result()
    return code, *capsys.readouterr()


def test_a_file_of_prompts_becomes_a_folder_in_one_session(capsys, exported, tmp_path, monkeypatch):
    sessions = []
    launch = generate.launch
    opened = lambda adapter, **options: sessions.append(adapter) or launch(adapter, **options)  # noqa: E731
    monkeypatch.setattr(generate, "launch", opened)
    asked = [
        {"id": "apple-0", "prompt": "a red apple", "seed": 5},
        {"id": "rocket-0", "prompt": "火箭", "seed": 5, "width": 32, "height": 48},
        {"id": "apple-again", "prompt": "a red apple", "seed": 5},
    ]
    out = tmp_path / "new" / "pictures"
    arguments = ["--prompts", lines(tmp_path / "prompts.jsonl", *asked), "--model", exported("two-heads-ternary")]
    arguments += ["-o", out, "--size", "48x32", "--steps", 2, "--adapter", "software", "--json"]
    arguments += ["--latents-out", tmp_path / "latents"]
    code, stdout, stderr = run(capsys, *arguments)
    assert code == 0, stderr
    assert np.load(tmp_path / "latents" / "rocket-0.npy").shape == (2, 6, 16)
    summary = json.loads(stdout)
    assert summary == json.loads((out / "summary.json").read_text("utf-8"))
    assert (summary["drawn"], summary["kept"], summary["missing"], summary["variant"]) == (3, 0, 0, "ternary")
    assert len(summary["site"]) == 64 and {one["site"] for one in summary["pictures"].values()} == {summary["site"]}
    assert {path.name for path in out.iterdir()} == {"summary.json", *(f"{job['id']}.png" for job in asked)}
    for job in asked:
        facts = summary["pictures"][job["id"]]
        assert (facts["prompt"], facts["seed"], facts["steps"]) == (job["prompt"], 5, 2)
        assert Image.open(out / facts["file"]).size == (job.get("width", 48), job.get("height", 32))
        assert facts["sha256"] == hashlib.sha256((out / facts["file"]).read_bytes()).hexdigest()
    same = [Image.open(out / f"{name}.png").tobytes() for name in ("apple-0", "apple-again")]
    assert same[0] == same[1]  # a seed counts even if the page has just used it
    assert "download" in summary["pictures"]["apple-0"]["seconds"]  # the model is loaded once
    assert not {"download", "compile"} & summary["pictures"]["apple-again"]["seconds"].keys()

    (out / "rocket-0.png").unlink()
    code, stdout, stderr = run(capsys, *arguments)
    assert code == 0 and sessions == ["software"] * 2, stderr
    again = json.loads(stdout)
    assert (again["drawn"], again["kept"]) == (1, 2)
    assert {name: one["sha256"] for name, one in again["pictures"].items()} == {
        name: one["sha256"] for name, one in summary["pictures"].items()
    }
    assert run(capsys, *arguments)[0] == 0 and len(sessions) == 2  # nothing to draw: no browser


class Page:
    """Stands in for the browser: draws what it is asked for, and breaks before picture `broken`."""

    def __init__(self, broken: int = 99):
        self.broken, self.asked = broken, []

    def __call__(self, site, model, requests, latents, adapter, setup):
        for number, request in enumerate(requests):
            if number == self.broken:
                raise BitbrushError("device-lost: expected a device, found none")
            self.asked.append(request)
            facts = {name: getattr(request, name) for name in ("prompt", "seed", "width", "height", "steps")}
            facts |= {
                "model": "pocket",
                "variant": "ternary",
                "adapter": "test",
                "kernels": "matmul: f32",
                "timings": {},
                "seconds": 1.0,
                "peak_bytes": {},
            }
            values = np.full((4, 12, 8), request.seed, np.float32) if latents else None
            yield generate.Picture(b"picture " + request.prompt.encode(), facts, values)


def jobs(*names: str) -> list[batch.Job]:
    return [batch.Job(name, generate.Request(f"a {name}", 64, 64, 4, 1)) for name in names]


def draw(folder: Path, wanted: list[batch.Job], **options) -> dict:
    return batch.draw_all(Path("site"), MODEL, wanted, folder, build._write, **options)


def test_an_interrupted_run_keeps_its_pictures_and_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "generate_many", Page(broken=2))
    with pytest.raises(BitbrushError, match="device-lost"):
        draw(tmp_path, jobs("cat", "dog", "owl"))
    assert {path.name for path in tmp_path.iterdir()} == {"cat.png", "dog.png", "summary.json"}
    kept = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert (kept["drawn"], kept["missing"]) == (2, 1) and set(kept["pictures"]) == {"cat", "dog"}
    page = Page()
    monkeypatch.setattr(generate, "generate_many", page)
    summary = draw(tmp_path, jobs("cat", "dog", "owl"))
    assert [request.prompt for request in page.asked] == ["a owl"]
    assert (summary["drawn"], summary["kept"], summary["missing"]) == (1, 2, 0)
    assert set(summary["pictures"]) == {"cat", "dog", "owl"}


def test_latents_lie_in_a_folder_of_their_own(monkeypatch, tmp_path):
    pictures, latents = tmp_path / "pictures", tmp_path / "latents"
    pictures.mkdir()
    latents.mkdir()
    monkeypatch.setattr(generate, "generate_many", Page())
    draw(pictures, jobs("cat"))
    assert draw(pictures, jobs("cat", "dog"), latents=latents)["drawn"] == 2  # the first cat had none
    assert {path.name for path in latents.iterdir()} == {"cat.npy", "dog.npy"}
    assert (np.load(latents / "dog.npy") == 1).all() and (pictures / "dog.png").read_bytes() == b"picture a dog"
    assert draw(pictures, jobs("cat", "dog"), latents=latents)["kept"] == 2


def test_a_picture_of_something_else_is_not_kept_for_it(monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "generate_many", Page())
    draw(tmp_path, jobs("cat"))
    other = [batch.Job("cat", generate.Request("a cat", 64, 64, 4, 2))]
    with pytest.raises(BadArguments, match=r"cat\.png: expected a picture with seed 2, found one with 1"):
        draw(tmp_path, other)
    with pytest.raises(BadArguments, match=r"cat\.png: expected a picture with forced 'int8', found one with None"):
        draw(tmp_path, jobs("cat"), setup=generate.Setup("int8"))
    monkeypatch.setattr(batch, "read_stamp", lambda site: {"inputs": "retrained"})
    with pytest.raises(BadArguments, match=r"cat\.png: expected a picture with site 'retrained', found one with None"):
        draw(tmp_path, jobs("cat"))
    (tmp_path / "summary.json").unlink()  # without facts a file counts as it is
    assert draw(tmp_path, other)["pictures"] == {"cat": {"file": "cat.png"}}
    (tmp_path / "summary.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadArguments, match=r"summary\.json: expected the summary of an earlier run"):
        draw(tmp_path, other)


def test_lines_take_what_they_leave_out_from_the_command_line(tmp_path):
    path = lines(tmp_path / "prompts.jsonl", {"id": "a", "prompt": "x"}, {"id": "b.1", "prompt": "y", "seed": 0})
    path.write_text(path.read_text("utf-8") + "\n  \n", encoding="utf-8")
    first, second = batch.read_jobs(path, DEFAULTS, SIZES)
    assert first == batch.Job("a", generate.Request("x", 64, 48, 4, 7))
    assert second.request.seed == 0 and second.file == "b.1.png"
    lone = lines(tmp_path / "lone.jsonl", {"id": "a", "prompt": "x"})
    lone.write_text('{"id": "a", "prompt": "x\\ud800"}', encoding="utf-8")
    assert batch.read_jobs(lone, DEFAULTS, SIZES)[0].request.prompt == "x?"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "expected a JSON object"),
        ("[1]", "expected an object with id, prompt"),
        ('{"id": "a"}', "expected an object with id, prompt"),
        ('{"id": "a", "prompt": "x", "sede": 1}', "expected an object with id, prompt"),
        ('{"id": "a", "prompt": 5}', "prompt: expected text, found 5"),
        ('{"id": "a", "prompt": "x", "seed": true}', "seed: expected a whole number, found true"),
        ('{"id": "a", "prompt": "x", "seed": 1.5}', "found 1.5"),
        ('{"id": "a", "prompt": "x", "seed": -1}', "found -1"),
        ('{"id": "a", "prompt": "x", "width": 40}', "found 40"),
        ('{"id": "../a", "prompt": "x"}', "found '../a'"),
        ('{"id": "", "prompt": "x"}', "found ''"),
        ('{"id": "FIRST", "prompt": "x"}', "found 'FIRST' again"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = lines(tmp_path / "prompts.jsonl", {"id": "first", "prompt": "x"})
    path.write_text(path.read_text("utf-8") + line, encoding="utf-8")
    with pytest.raises(BadArguments) as caught:
        batch.read_jobs(path, DEFAULTS, SIZES)
    assert "prompts.jsonl, line 2: " in str(caught.value) and words in str(caught.value)


def test_a_file_without_lines_is_refused(tmp_path):
    for content, words in ((b"\n", "expected at least one line"), (b"\xff\xfe\x00", "found no UTF-8")):
        (tmp_path / "prompts.jsonl").write_bytes(content)
        with pytest.raises(BadArguments, match=words):
            batch.read_jobs(tmp_path / "prompts.jsonl", DEFAULTS, SIZES)
    with pytest.raises(BadArguments, match="none.jsonl: expected a file of JSON lines, found No such file"):
        batch.read_jobs(tmp_path / "none.jsonl", DEFAULTS, SIZES)


def test_arguments_that_make_no_sense_end_with_2(capsys, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "launch", lambda adapter, **options: pytest.fail("a browser was started"))
    prompts = lines(tmp_path / "prompts.jsonl", {"id": "a", "prompt": "x", "width": 17})
    model = exported("two-heads-ternary")
    for arguments, words in (
        (["--prompts", prompts], "-o: expected a folder"),
        (["--prompts", prompts, "-o", prompts], "-o: expected a folder"),
        (["--prompts", prompts, "-o", tmp_path / "x", "--latents-out", prompts], "--latents-out"),
        (["--prompts", prompts, "-p", "x", "-o", tmp_path / "x"], "--prompt"),
        (["--prompts", prompts, "-o", tmp_path / "x", "--model", model], "line 1: --size, width"),
    ):
        code, stdout, stderr = run(capsys, *arguments)
        assert code == 2 and stdout == "" and words in stderr and len(stderr.splitlines()) == 1
    assert not (tmp_path / "x").exists()
