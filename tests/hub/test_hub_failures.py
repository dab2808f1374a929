"""What a Hub id is refused for, and what goes wrong on the way: one line each, and only whole files stay."""

from __future__ import annotations

import errno
import shutil
import socket
import sys

import pytest
from huggingface_hub import constants, file_download

from exporter import hub
from exporter.errors import BadCheckpoint, BitbrushError
from tests.hub.repositories import KLEIN, SPLIT, WEIGHTS, files_in, nothing_partial
from tests.hub.server import commit_of


def refusal(id: str, at: str | None = None) -> str:
    """The one line that `fetch` refuses with, which says where: the id, maybe a file."""
    with pytest.raises(BadCheckpoint) as caught:
        hub.fetch(id)
    line = str(caught.value)
    assert (
        "\n" not in line and line.startswith(f"{id}: {at}: expected " if at else f"{id}: expected ") and len(line) < 400
    )
    return line


# What is refused


def test_a_repository_that_is_not_there(server, monkeypatch):
    line = refusal("some-lab/klein")
    assert f"a local folder or {server.url}/some-lab/klein, found neither" in line
    monkeypatch.setenv("HF_TOKEN", "hf_other")  # who has a token gets another status
    assert refusal("some-lab/klein") == line and "hf_other" in server.tokens


def test_a_revision_that_is_not_there(server):
    server.add("some-lab/klein", KLEIN)
    for revision in ("nope", commit_of(9)):
        assert f"a branch, tag or commit {revision} of" in refusal(f"some-lab/klein@{revision}")


def test_gated_and_private_repositories_tell_how_to_give_the_exporter_a_token(server, monkeypatch, tmp_path):
    server.add("some-lab/gated", KLEIN, access="gated")
    server.add("some-lab/private", KLEIN, access="private")
    for token in (None, "hf_other"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        lines = {name: refusal(f"some-lab/{name}") for name in ("gated", "private")}
        for line in lines.values():
            assert "the exporter a token" in line and "`hf auth login`" in line and "HF_TOKEN" in line
            assert "a page never needs one" in line and "hf_other" not in line
        assert f"accept its terms at {server.url}/some-lab/gated" in lines["gated"]
        assert "if it is private" in lines["private"]
    assert server.downloads() == []
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    for name in ("gated", "private"):
        assert files_in(hub.fetch(f"some-lab/{name}").path) == KLEIN
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_right")  # where `hf auth login` leaves it
    shutil.rmtree(tmp_path / "cache")
    assert files_in(hub.fetch("some-lab/private").path) == KLEIN
    assert server.stored_tokens == {None}


def test_a_token_that_the_hub_does_not_know(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_invalid")
    line = refusal("some-lab/klein")
    assert "status 401" in line and "`hf auth login`" in line and "hf_invalid" not in line


@pytest.mark.parametrize("status", [403, 429, 500, 404])
def test_other_answers_of_the_hub(server, status):
    server.status = status
    line = refusal("some-lab/klein")
    assert f"found status {status}" in line
    assert ("try again later" in line) == (status in (429, 500))


@pytest.mark.parametrize(
    "text", [b"<html>log in to this network</html>", b"[]", b"{}", b'{"id": "a/b", "sha": "main"}']
)
def test_answers_that_are_none_of_a_hub(server, text):
    server.add("some-lab/klein", KLEIN)
    server.text = text
    assert server.url in refusal("some-lab/klein")


def test_no_network(server, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    line = refusal("some-lab/klein")
    assert f"from {address}, found: " in line and "refused" in line and "check the network" in line
    monkeypatch.setenv("HF_ENDPOINT", "nowhere")
    assert "from nowhere, found: " in refusal("some-lab/klein")


def test_offline_mode(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "found HF_HUB_OFFLINE set; unset it" in refusal("some-lab/klein")
    assert server.asked == []


@pytest.mark.parametrize(
    ("without", "also", "words"),
    [
        ("model_index.json", {}, "model_index.json of a diffusers pipeline, found"),
        ("vae/", {}, "a folder vae, or one whose name starts so, found none"),
        ("transformer/", {"transformer-a/x": b"", "transformer-b/x": b""}, "found transformer-a and transformer-b"),
        ("transformer/d", {}, "transformer: expected diffusion_pytorch_model.safetensors or"),
        ("tokenizer/", {}, "tokenizer: expected tokenizer.json, or vocab.json and merges.txt"),
        (SPLIT[1], {}, "found no file model-00002-of-00002.safetensors"),
        ("text_encoder/model.safetensors.i", {"text_encoder/model.safetensors.index.json": b"{"}, "expected JSON"),
        ("text_encoder/model.safetensors.i", {"text_encoder/model.safetensors.index.json": b"{}"}, "weight_map"),
    ],
)
def test_repositories_that_hold_no_pipeline_are_refused_before_their_weights(server, without, also, words):
    files = {name: data for name, data in KLEIN.items() if not name.startswith(without)}
    server.add("some-lab/klein", {**files, **also})
    with pytest.raises(BadCheckpoint) as caught:
        hub.fetch("some-lab/klein")
    assert words in str(caught.value) and str(caught.value).startswith("some-lab/klein: ")
    assert not [name for name in server.downloads() if name.endswith(".safetensors")]


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BitbrushError, match=r"package huggingface_hub, found none: pip install -e '\.\[export\]'"):
        hub.fetch("some-lab/klein")


# What goes wrong on the way


def test_a_connection_that_breaks_goes_on_where_it_broke(server, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 16_000)
    server.add("some-lab/klein", KLEIN)
    server.cut = 50_000
    told: list[int] = []
    fetched = hub.fetch("some-lab/klein", progress=lambda what, done, total: told.append(done))
    assert files_in(fetched.path) == KLEIN and server.ranges == ["bytes=48000-"]
    assert told == sorted(told) and told[-1] == sum(map(len, KLEIN.values()))


def test_a_disk_that_fills_up_leaves_whole_files_and_the_next_try_goes_on(server, monkeypatch, tmp_path):
    server.add("some-lab/klein", KLEIN)
    real = file_download.http_get

    def full(url, temp_file, **options):
        if "/transformer/" in url and url.endswith(".safetensors"):
            temp_file.write(b"transformer ")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(url, temp_file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", full)
        line = refusal("some-lab/klein")
    missing = sum(len(KLEIN[f"{name}/diffusion_pytorch_model.safetensors"]) for name in ("transformer", "vae"))
    missing += len(KLEIN["vae/config.json"])
    assert f"{missing / 1e6:.2f} MB free in {tmp_path / 'cache'} for the files still to come" in line
    assert "the disk full at transformer/diffusion_pytorch_model.safetensors" in line and "HF_HOME" in line
    assert nothing_partial(tmp_path / "cache")
    server.asked.clear()
    assert files_in(hub.fetch("some-lab/klein").path) == KLEIN
    assert [name.split("/", 5)[5] for name in server.downloads()] == [
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_a_disk_that_is_too_small_is_refused_before_the_weights(server, monkeypatch):
    server.add("some-lab/klein", KLEIN)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 9 * 10**5, 10**5))
    assert "found 0.10 MB; make room" in refusal("some-lab/klein")
    assert [name.rsplit("/", 1)[1] for name in server.downloads()] == ["model.safetensors.index.json"]


def test_a_cache_that_cannot_be_written(server, tmp_path):
    server.add("some-lab/klein", KLEIN)
    (tmp_path / "cache").write_text("a file")
    line = refusal("some-lab/klein")
    assert f"into {tmp_path / 'cache'}" in line


def test_a_file_that_was_cut_short_in_the_cache_is_fetched_again(server):
    server.add("some-lab/klein", KLEIN)
    path = hub.fetch("some-lab/klein").path / "vae" / "diffusion_pytorch_model.safetensors"
    path.resolve().write_bytes(WEIGHTS[:100])
    server.asked.clear()
    assert files_in(hub.fetch("some-lab/klein").path) == KLEIN
    assert len(server.downloads()) == 1


@pytest.mark.parametrize("name", ["README.md", "vae/diffusion_pytorch_model.safetensors"])
def test_other_bytes_than_the_commit_lists_are_not_kept(server, tmp_path, name):
    server.add("some-lab/klein", KLEIN)
    server.spoil = name
    assert f"{name}: expected the bytes that the commit lists, found others" in refusal("some-lab/klein", at=name)
    server.spoil = None
    assert files_in(hub.fetch("some-lab/klein").path) == KLEIN
