"""A Hub id in place of a checkpoint's folder: what it means, what is fetched, what the manifest says of it."""

from __future__ import annotations

import json

import pytest

import build
from exporter import bundle, hub, manifest
from exporter.checkpoint import Checkpoint
from exporter.errors import BadArguments, BadBundle
from exporter.hub_files import choose
from tests.hub.repositories import KLEIN, files_in, nothing_partial
from tests.hub.server import commit_of
from tests.tiny import make_pipeline

UNUSED = dict.fromkeys(
    [
        ".gitattributes",
        "flux-2-klein-4b.safetensors",
        "teaser.png",
        "docs/LICENSE",
        "processor/preprocessor_config.json",
        "image_encoder/model.safetensors",
        "text_encoder/generation_config.json",
        "text_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer-int8/diffusion_pytorch_model.safetensors",
        "transformer/README.md",
        "vae/model.onnx",
    ],
    b"unused " * 1000,
)


# What is fetched


def test_the_files_that_the_exporter_reads_come_and_no_others(server, tmp_path):
    commit = server.add("some-lab/klein", {**KLEIN, **UNUSED})
    fetched = hub.fetch("some-lab/klein")
    assert fetched == hub.Fetched(fetched.path, "some-lab/klein", commit)
    assert files_in(fetched.path) == KLEIN
    assert (tmp_path / "cache") in fetched.path.parents and nothing_partial(tmp_path / "cache")
    assert len(server.downloads()) == len(KLEIN)
    assert not [line for line in server.asked if any(line.endswith("/" + name) for name in UNUSED)]
    assert server.tokens == {None}


def test_what_is_in_the_cache_is_not_downloaded_again(server):
    first = server.add("some-lab/klein", KLEIN)
    path = hub.fetch("some-lab/klein").path
    server.asked.clear()
    assert hub.fetch("some-lab/klein").path == path
    assert server.asked == ["GET /api/models/some-lab/klein"]
    # Another commit with the same weights: one file changes, one is sent.
    repository = server.repositories["some-lab/klein"]
    repository.commits[commit_of(2)] = {**KLEIN, "README.md": b"more"}
    repository.refs["main"] = commit_of(2)
    again = hub.fetch("some-lab/klein")
    assert (again.commit, files_in(again.path)["README.md"]) == (commit_of(2), b"more")
    assert [name.rsplit("/", 1)[1] for name in server.downloads()] == ["README.md"]
    assert first != again.commit and files_in(path) == KLEIN


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/7", "feature/smaller", commit_of(2)])
def test_a_revision_is_a_branch_a_tag_or_a_commit(server, revision):
    server.add("some-lab/klein", KLEIN)
    repository = server.repositories["some-lab/klein"]
    repository.commits[commit_of(2)] = {**KLEIN, "README.md": b"second"}
    repository.refs[revision] = commit_of(2)
    fetched = hub.fetch(f"some-lab/klein@{revision}")
    assert (fetched.id, fetched.commit) == ("some-lab/klein", commit_of(2))
    assert (fetched.path / "README.md").read_bytes() == b"second"


def test_a_branch_that_moves_meanwhile_changes_nothing(server):
    first = server.add("some-lab/klein", KLEIN)
    server.repositories["some-lab/klein"].commits[commit_of(2)] = dict.fromkeys(KLEIN, b"later")
    server.move = {"main": commit_of(2)}
    fetched = hub.fetch("some-lab/klein")
    assert fetched.commit == first and files_in(fetched.path) == KLEIN


def test_progress_counts_bytes_up_to_all_of_them(server):
    server.add("some-lab/klein", KLEIN)
    for _ in range(2):  # from the network, then from the cache
        told: list[tuple[str, int, int]] = []
        hub.fetch("some-lab/klein", progress=lambda *news, told=told: told.append(news))
        total = sum(map(len, KLEIN.values()))
        counts = [done for _, done, _ in told]
        assert {all_of_them for _, _, all_of_them in told} == {total}
        assert counts == sorted(counts) and counts[-1] == total
        assert {what for what, _, _ in told} == set(KLEIN)


@pytest.mark.parametrize(
    ("wanted", "unwanted"),
    [
        (  # an MLX pack: its tokenizer lies at the top and again beside the text encoder
            [
                *("transformer-packed-mflux/config.json", "transformer-packed-mflux/quantization_config.json"),
                "transformer-packed-mflux/diffusion_pytorch_model.safetensors",
                *("text_encoder-mlx-4bit/config.json", "text_encoder-mlx-4bit/model.safetensors"),
                "tokenizer/tokenizer.json",
            ],
            ["text_encoder-mlx-4bit/tokenizer.json", "manifest.json"],
        ),
        (  # a gemlite pack: no scheduler, the tokenizer below the text encoder
            [
                *("transformer-gemlite-int2/config.json", "transformer-gemlite-int2/state_dict.pt"),
                *("text_encoder-hqq-4bit/config.json", "text_encoder-hqq-4bit/qmodel.pt"),
                *("text_encoder-hqq-4bit/tokenizer/vocab.json", "text_encoder-hqq-4bit/tokenizer/merges.txt"),
            ],
            ["transformer-gemlite-int2/gemlite_autotune.json", "transformer-gemlite-int2/optimizer.pt"],
        ),
        (
            [
                *("transformer/config.json", "transformer/klein-q1_0.gguf"),
                *("text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/tokenizer.json"),
            ],
            ["klein-q1_0.gguf", "transformer/older/klein.gguf", "tokenizer/special_tokens_map.json"],
        ),
    ],
    ids=["mlx", "gemlite", "gguf"],
)
def test_packs_come_with_their_own_files(wanted, unwanted):
    always = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    assert choose("x", [*wanted, *unwanted, *always], dict) == sorted(wanted + always)


def test_a_real_pipeline_opens_from_the_cache_and_its_manifest_says_where_from(server, tmp_path, monkeypatch):
    folder = make_pipeline(tmp_path / "tiny", double=1, single=1, ternary=True)
    commit = server.add("some-lab/tiny", files_in(folder))
    fetched = hub.fetch("some-lab/tiny")
    local, opened = Checkpoint(folder), Checkpoint(fetched.path)
    assert all(opened.names(component) == local.names(component) for component in opened.folders)
    monkeypatch.chdir(tmp_path)
    arguments = ["--weights", "ternary", "--encoder-bits", "16", "--encoder-layers", "1,2,3", "-o", "out"]
    assert build.main(["export", "some-lab/tiny@main", *arguments]) == 0
    made = manifest.load(tmp_path / "out")
    assert (made["source"], made["commit"]) == ("some-lab/tiny", commit)


# What an argument means


def test_an_id_has_one_slash_and_a_folder_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = ["some-lab/klein", "some-lab/klein@v1", "a/b@refs/pr/1", "a/b c", "a/b@", "https://huggingface.co/a/b"]
    paths = ["klein", "./a/b", "../b", "a/b/c", "/a", "~/b", "a/", "x@a/b", "a\\b/c", str(tmp_path), "a" * 5000]
    assert [text for text in [*ids, *paths] if hub.is_id(text)] == [*ids, "x@a/b"][:-1]
    (tmp_path / "some-lab" / "klein").mkdir(parents=True)
    assert not hub.is_id("some-lab/klein") and hub.is_id("some-lab/klein@v1")


@pytest.mark.parametrize(
    "id",
    [
        *("a/b c", "a/b@", "a/b@x y", "a/b@x..y", "a/b@/x", "a/b@-x", "a/b@x\ny", "a/b@x:y", "a/b@x^", "a//b@x"),
        *("ä/b", "a/-b", "a/b--c", "a/b..c", "a/b.git", "https://huggingface.co/a/b", "a/" + "b" * 200, "a/b\0"),
    ],
)
def test_malformed_ids_are_bad_arguments_before_any_question(server, id):
    with pytest.raises(BadArguments, match=r"^checkpoint: expected .*OWNER/NAME.* found '") as caught:
        hub.fetch(id)
    assert "\n" not in str(caught.value) and server.asked == []


# The command line and the manifest


def test_the_command_line_fetches_and_hands_on_id_and_commit(server, monkeypatch, tmp_path, capsys):
    commit = server.add("some-lab/klein", KLEIN)
    calls = []
    made = bundle.Exported(tmp_path / "out", 0)
    monkeypatch.setattr(bundle, "export_bundle", lambda *given, **named: calls.append((given, named)) or made)
    assert build.main(["export", "some-lab/klein@main", "--weights", "ternary", "-o", "out"]) == 0
    (checkpoint, _), named = calls[0]
    assert files_in(checkpoint) == KLEIN
    assert (named["source"], named["commit"]) == ("some-lab/klein", commit)
    assert build.main(["export", "./some-lab/klein", "--weights", "ternary", "-o", "out"]) == 0
    assert calls[1][0][0] == "./some-lab/klein" and not {"source", "commit"} & set(calls[1][1])


@pytest.mark.parametrize(("id", "code"), [("some-lab/none", 3), ("some-lab/klein@none", 3), ("some-lab/kl ein", 2)])
def test_the_command_line_ends_with_one_line_and_leaves_nothing(server, monkeypatch, tmp_path, capsys, id, code):
    server.add("some-lab/klein", KLEIN)
    monkeypatch.chdir(tmp_path)
    assert build.main(["export", id, "--weights", "ternary", "-o", "out"]) == code
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("commit", ["main", "", 7, None, "g" * 40, "A" * 40, "0" * 39])
def test_a_manifests_commit_has_40_hexadecimal_digits(commit):
    good = json.loads((build.ROOT / "models" / "pocket" / "ternary" / "manifest.json").read_text())
    assert "commit" not in good
    manifest.check(good, "manifest.json")
    manifest.check({**good, "commit": commit_of(1)}, "manifest.json")
    with pytest.raises(BadBundle, match=r"^manifest\.json: expected commit as 40 hexadecimal digits, found"):
        manifest.check({**good, "commit": commit}, "manifest.json")
