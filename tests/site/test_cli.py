"""The command line: what it refuses, with which exit code, and that a refusal is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import build
from exporter import browser, generate, packages
from exporter.errors import BadArguments, BadBundle, BitbrushError, NoBrowser


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    capsys.readouterr()
    code = build.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return code, lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paint"], "'paint'"),
        (["generate"], "--prompt"),
        (["generate", "-p", "x", "--size", "big"], "'big'"),
        (["generate", "-p", "x", "--size", "-16x16"], "--size"),
        (["generate", "-p", "x", "--seed", "-1"], "'-1'"),
        (["generate", "-p", "x", "--seed", "abc"], "'abc'"),
        (["generate", "-p", "x", "--steps", "1.5"], "'1.5'"),
        (["generate", "-p", "x", "--model", "nobody"], "'nobody'"),
        (["generate", "-p", "x", "--adapter", "abacus"], "abacus"),
        (["generate", "-p", "x", "--out", "no/such/folder/out.png"], "out.png"),
        (["generate", "-p", "x", "--paint"], "--paint"),
        (["export", "x"], "--weights"),
        (["export", "x", "--weights", "quaternary", "-o", "y"], "quaternary"),
        (["export", "x", "--weights", "binary", "-o", "y", "--encoder-bits", "5"], "5"),
        (["export", "x", "--weights", "binary", "-o", "y", "--encoder-layers", "9;18"], "9;18"),
        (["site"], "BUNDLE"),
        (["site", "x", "--weights-url", "http://example.org/"], "http://example.org/"),
        (["site", "x", "--weights-url", "https://me@example.org/"], "me@example.org"),
        (["site", "x", "--space", "nobody"], "'nobody'"),
        (["serve", "--port", "http"], "'http'"),
    ],
)
def test_bad_arguments_end_with_2(capsys, arguments, words):
    code, line = run(capsys, *arguments)
    assert code == 2 and words in line


def test_a_missing_bundle_ends_with_3_and_leaves_nothing(capsys, tmp_path):
    none, out = tmp_path / "none", tmp_path / "out"
    for arguments in (["site", none, "-o", out], ["generate", "-p", "x", "--model", none, "-o", out]):
        code, line = run(capsys, *arguments)
        assert code == 3 and "none: expected a bundle folder" in line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_ends_with_3(capsys, tmp_path):
    code, line = run(capsys, "export", tmp_path / "none", "--weights", "binary", "-o", tmp_path / "out")
    assert code == 3 and "none" in line
    assert list(tmp_path.iterdir()) == []


def test_a_newer_bundle_ends_with_3(capsys, exported, tmp_path):
    bundle = shutil.copytree(exported("two-heads-ternary"), tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "format": 3}), encoding="utf-8")
    code, line = run(capsys, "site", bundle, "-o", tmp_path / "out")
    assert code == 3 and "format 3" in line
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_ends_with_3_and_leaves_nothing(capsys, exported, tmp_path):
    bundle = shutil.copytree(exported("two-heads-ternary"), tmp_path / "bundle")
    shard = next((bundle / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, line = run(capsys, "site", bundle, "-o", tmp_path / "out")
    assert code == 3 and shard.name in line
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_unknown_variant_ends_with_2(capsys, exported, tmp_path):
    arguments = ["generate", "-p", "x", "--model", exported("two-heads-ternary"), "-o", tmp_path / "x.png"]
    code, line = run(capsys, *arguments, "--variant", "binary")
    assert code == 2 and "expected ternary, found 'binary'" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "0"], "found 0"),
        (["--size", "17x16"], "found 17"),
        (["--size", "64x100000"], "found 100000"),
        (["--steps", "0"], "found 0"),
        (["--seed", "9007199254740992"], "found 9007199254740992"),
    ],
)
def test_what_the_model_cannot_draw_ends_with_2_before_a_browser_starts(
    capsys, exported, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.setattr(generate, "launch", lambda adapter, **options: pytest.fail("a browser was started"))
    model = exported("two-heads-ternary")
    code, line = run(capsys, "generate", "-p", "x", "--model", model, "-o", tmp_path / "x.png", *arguments)
    assert code == 2 and words in line
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_output_ends_with_2(capsys, exported, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "site"):
        code, line = run(capsys, "site", exported("two-heads-ternary"), "-o", out)
        assert code == 2 and str(out) in line
    assert (tmp_path / "file").read_text("utf-8") == "in the way"


def test_without_a_browser_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setenv(browser.ENVIRONMENT_VARIABLE, "/no/such/browser")
    with pytest.raises(NoBrowser, match="/no/such/browser"):
        browser.find()
    monkeypatch.delenv(browser.ENVIRONMENT_VARIABLE)
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    monkeypatch.setattr(browser, "PATHS", ())
    assert browser.find() is None
    monkeypatch.setattr(browser, "_run", lambda command: False)
    with pytest.raises(NoBrowser, match=browser.ENVIRONMENT_VARIABLE):
        browser.install(None)
    assert NoBrowser.exit_code == 4


def test_an_unknown_adapter_is_refused():
    with pytest.raises(ValueError, match="abacus"):
        browser.flags("abacus")


def test_a_gpu_is_used_as_a_visitors_browser_uses_it_but_for_the_features_asked_for(monkeypatch):
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(browser.sys, "platform", system)
        usual = browser.flags("hardware")
        assert not any("unsafe" in flag or "dawn" in flag or "swiftshader" in flag for flag in usual)
        assert ("--enable-features=Vulkan" in usual) == (system == "linux")
    assert "--enable-unsafe-webgpu" in browser.FEATURE_FLAGS


@pytest.mark.parametrize("adapter", ["hardware", "software"])
def test_no_switch_comes_twice_since_chromium_takes_the_last_alone(monkeypatch, adapter):
    monkeypatch.setattr(browser.sys, "platform", "linux")
    every = {*browser.flags(adapter), *browser.FEATURE_FLAGS, *browser.FINE_CLOCK}
    assert len({flag.split("=")[0] for flag in every}) == len(every)


def test_pages_errors_become_the_exit_codes():
    state = {"error": None, "notice": None, "invalid": None}
    for code, kind in (
        ("no-adapter", NoBrowser),
        ("hash-mismatch", BadBundle),
        ("bad-request", BadArguments),
    ):
        with pytest.raises(kind, match=f"{code}: why"):
            generate._raise_for({**state, "error": {"code": code, "message": "why"}})
    with pytest.raises(NoBrowser, match="no-webgpu"):
        generate._raise_for({**state, "notice": "no-webgpu"})
    with pytest.raises(BitbrushError) as caught:
        generate._raise_for({**state, "error": {"code": "device-lost", "message": "why"}})
    assert caught.value.exit_code == 1
    generate._raise_for(state)


def test_npm_that_fails_is_reported_in_one_line(monkeypatch, tmp_path):
    lock = {"packages": {"node_modules/left": {"version": "1.0.0"}}}
    (tmp_path / "package-lock.json").write_text(json.dumps(lock), encoding="utf-8")
    (tmp_path / "package.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    with pytest.raises(BitbrushError, match="expected left 1.0.0 to be installed, npm said: "):
        packages.node_package("left")


def test_pytest_gets_the_further_arguments(monkeypatch):
    called = []

    class Done:
        returncode = 5

    monkeypatch.setattr(build.subprocess, "run", lambda command, **_: called.append(command) or Done)
    assert build.main(["test", "-k", "noise", "--maxfail=1"]) == 5
    assert called[0][1:] == ["-m", "pytest", "-k", "noise", "--maxfail=1"]


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit):
        build.main(["--help"])
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("serve", "generate", "export", "site", "test"))


def test_the_limits_are_the_runtimes_own():
    source = (Path(build.ROOT) / "site" / "js" / "runtime" / "request.js").read_text("utf-8")
    assert f"MAX_STEPS = {generate.MAXIMUM_STEPS};" in source
    assert "MAX_SEED = Number.MAX_SAFE_INTEGER;" in source and generate.MAXIMUM_SEED == 2**53 - 1
