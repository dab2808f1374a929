"""The stages of training/ at --tiny size on the CPU: resuming, budgets, signals, pieces, checks of the input."""

import json
import os
import random
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from training import cache, rollouts, run_all, students, teacher, vae
from training.captions import chinese, english
from training.clock import Clock, Signals
from training.optimizers import Muon, orthogonal
from training.prepare import check_package
from training.scenes import Renderer, random_scene
from training.storage import (
    compress,
    expand,
    limit_folder,
    load_checkpoint,
    load_pieces,
    piece_notes,
    save_checkpoint,
    save_pieces,
)
from training.tokenizer import train_tokenizer

THINGS = {"apple": "苹果", "rocket": "火箭", "cat": "猫", "castle": "城堡", "robot": "机器人", "pizza": "披萨"}


STAGES = [name for name in run_all.SHARES if name != "recogniser"]  # its prompts need the real objects


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder as training.prepare writes it, with six drawn shapes."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sprites").mkdir()
    objects = []
    for number, (label, name) in enumerate(THINGS.items()):
        image = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(image).regular_polygon((32, 32, 28), 3 + number, fill=(40 * number, 200 - 30 * number, 90, 255))
        image.save(folder / "sprites" / f"{label}.webp", lossless=True)
        words = {"extra": [], "tags": []}
        objects.append(
            dict(hex=label, en=dict(words, label=label), zh=dict(words, label=name), measure="个", colour=None)
        )
    (folder / "objects.json").write_text(json.dumps(objects), "utf-8")
    rng = random.Random(0)
    scenes = [random_scene(objects, rng) for _ in range(200)]
    texts = [text for scene in scenes for text in (english(scene, rng), chinese(scene, rng))]
    train_tokenizer(texts, 500, 48).save_pretrained(str(folder / "tokenizer"))
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A folder with run/ and out/ of a complete dry run of all stages."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_all.main(options(data, folder, "--steps", "3", "--only", *STAGES)) == 0
    return folder


def options(data: Path, folder: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--run", str(folder / "run"), "--out", str(folder / "out"), "--tiny", *more]


def copied(finished: Path, folder: Path, *patterns: str) -> Path:
    """`folder` with those files of the finished run."""
    (folder / "run").mkdir(parents=True)
    for pattern in patterns:
        for path in (finished / "run").glob(pattern):
            shutil.copy(path, folder / "run")
    return folder


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_dry_run_leaves_every_result_and_all_pieces(finished):
    for name in ("vae", "cache-256x256", "cache-128x128", "teacher-final", "rollouts", "dense-final", "binary-final"):
        assert (finished / "run" / f"{name}.pt").exists(), name
    stems = {path.name.split("-")[0] for path in (finished / "out").glob("*.safetensors")}
    assert stems == {"vae", "text", "dense", "binary", "ternary"}  # dense took the teacher's place
    lines = [json.loads(line) for line in (finished / "out" / "log.jsonl").read_text().splitlines()]
    assert {"vae", "teacher", "dense", "binary", "ternary"} <= {line["stage"] for line in lines if "loss" in line}


def test_a_finished_run_is_left_alone(data, finished):
    before = {path: path.stat().st_mtime_ns for path in (finished / "run").glob("*.pt")}
    assert run_all.main(options(data, finished, "--steps", "3", "--only", *STAGES)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "run").glob("*.pt")}


def test_an_interrupted_teacher_ends_with_the_same_weights(data, finished, tmp_path):
    whole = copied(finished, tmp_path / "whole", "vae.pt", "cache-*.pt")
    parts = copied(finished, tmp_path / "parts", "vae.pt", "cache-*.pt")
    assert teacher.run(options(data, whole, "--steps", "8"))
    assert not teacher.run(options(data, parts, "--steps", "8", "--stop-after", "2"))
    assert load_checkpoint(parts / "run" / "teacher.pt")["step"] == 2
    assert not teacher.run(options(data, parts, "--steps", "8", "--stop-after", "5"))
    assert load_checkpoint(parts / "run" / "teacher.pt")["step"] == 7
    assert teacher.run(options(data, parts, "--steps", "8"))
    one, other = (load_checkpoint(folder / "run" / "teacher-final.pt") for folder in (whole, parts))
    assert same(one["transformer"], other["transformer"]) and same(one["text"], other["text"])


def test_an_interrupted_vae_ends_with_the_same_weights(data, tmp_path):
    for name, calls in {"whole": [()], "parts": [("--stop-after", "1"), ()]}.items():
        for more in calls:
            done = vae.run(options(data, tmp_path / name, "--steps", "2", *more))
        assert done
    one, other = (load_checkpoint(tmp_path / name / "run" / "vae.pt") for name in ("whole", "parts"))
    assert same(one["vae"], other["vae"])


def test_an_interrupted_student_ends_with_the_same_weights(data, finished, tmp_path):
    results = []
    for name, calls in {"whole": [()], "parts": [("--stop-after", "3"), ()]}.items():
        folder = copied(finished, tmp_path / name, "teacher-final.pt", "dense-final.pt", "rollouts.pt")
        for more in calls:
            done = students.run(["--kind", "ternary", *options(data, folder, "--steps", "5", *more)])
        assert done
        results.append(load_checkpoint(folder / "run" / "ternary-final.pt")["transformer"])
    assert same(*results)


def test_rollouts_add_to_what_an_earlier_call_recorded(data, finished, tmp_path):
    folder = copied(finished, tmp_path / "more", "teacher-final.pt", "cache-*.pt")
    call = [word for word in options(data, folder) if word not in ("--out", str(folder / "out"))]
    assert not rollouts.run([*call, "--steps", "2", "--until", "1"])
    assert rollouts.run([*call, "--steps", "2"])
    states = load_checkpoint(folder / "run" / "rollouts.pt")["buckets"][256, 256]["states"]
    assert states.shape[1:] == (5, 64, 16, 16) and torch.isfinite(states).all()


def test_more_time_trains_the_pieces_of_a_complete_run_further(data, finished, tmp_path):
    for steps, folder, more in ((3, "first", ()), (5, "second", ("--pieces", str(tmp_path / "first" / "out")))):
        assert vae.run(options(data, tmp_path / folder, "--steps", str(steps), *more))
        copy = copied(finished, tmp_path / f"{folder}-teacher", "vae.pt", "cache-*.pt")
        pieces = [str(tmp_path / "first-teacher" / "out") if word.endswith("out") else word for word in more]
        assert teacher.run(options(data, copy, "--steps", str(steps), *pieces))
    assert load_checkpoint(tmp_path / "second" / "run" / "vae-train.pt")["fresh"] == 3
    assert load_checkpoint(tmp_path / "second" / "run" / "vae.pt")["step"] == 5
    assert load_checkpoint(tmp_path / "second-teacher" / "run" / "teacher.pt")["fresh"] == 3
    assert load_checkpoint(tmp_path / "second-teacher" / "run" / "teacher-final.pt")["step"] == 5


def test_a_teacher_goes_on_from_the_pieces_of_a_lost_run(data, finished, tmp_path):
    folder = copied(finished, tmp_path / "lost", "vae.pt", "cache-*.pt")
    assert not teacher.run(options(data, folder, "--steps", "6", "--stop-after", "4"))
    for path in (folder / "run").glob("teacher*.pt"):
        path.unlink()
    assert piece_notes(folder / "out", "teacher")["step"] == 4
    assert teacher.run(options(data, folder, "--steps", "6", "--pieces", str(folder / "out")))
    assert load_checkpoint(folder / "run" / "teacher-final.pt")["step"] == 6


def test_minutes_end_a_stage_and_the_end_of_a_call_does_not_complete_it(data, finished, tmp_path):
    folder = copied(finished, tmp_path / "minutes", "vae.pt", "cache-*.pt")
    assert not teacher.run(options(data, folder, "--minutes", "5", "--until", "1"))
    assert not (folder / "run" / "teacher-final.pt").exists()
    assert teacher.run(options(data, folder, "--minutes", "0.06"))
    state = load_checkpoint(folder / "run" / "teacher.pt")
    assert state["complete"] and state["step"] > 0


def test_sigterm_saves_and_stops(data, finished, tmp_path):
    folder = copied(finished, tmp_path / "signal", "vae.pt", "cache-*.pt")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    Signals.watch()
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        assert not teacher.run(options(data, folder, "--minutes", "5"))
    finally:
        timer.cancel()
        Signals.asked = False
        for number, handler in before.items():
            signal.signal(number, handler)
    assert load_checkpoint(folder / "run" / "teacher.pt")["step"] > 0


def test_run_all_stops_at_the_end_of_a_call_and_goes_on(data, finished, tmp_path):
    folder = copied(
        finished, tmp_path / "calls", "scenes.pt", "vae.pt", "cache-*.pt", "teacher-final.pt", "rollouts.pt"
    )
    asked = options(data, folder, "--steps", "2", "--only", "dense", "binary")
    assert run_all.main([*asked, "--call-minutes", "0"]) == run_all.STOPPED
    assert run_all.main(asked) == 0 and (folder / "run" / "binary-final.pt").exists()


def test_a_failing_recogniser_does_not_stop_the_students(data, finished, tmp_path, monkeypatch):
    folder = copied(finished, tmp_path / "failing", "vae.pt", "teacher-final.pt", "rollouts.pt")
    monkeypatch.setattr(run_all.recognise, "run", lambda arguments: 1 / 0)
    with pytest.raises(SystemExit, match="errors in recogniser"):
        run_all.main(options(data, folder, "--steps", "2", "--only", "recogniser", "dense"))
    assert (folder / "run" / "dense-final.pt").exists()


def test_a_clock_counts_earlier_calls():
    clock = Clock(1.0, used=30.0)
    assert 0.5 < clock.progress(0) < 1 and not clock.stop(0)
    assert Clock(1.0, used=60.0).stop(0) and Clock(1.0, steps=4).stop(4) and not Clock(0.0, steps=4).stop(3)


def test_a_loss_that_is_no_number_keeps_the_checkpoint(data, finished, tmp_path, monkeypatch):
    folder = copied(finished, tmp_path / "nan", "vae.pt", "cache-*.pt")
    assert not teacher.run(options(data, folder, "--steps", "6", "--stop-after", "2"))
    monkeypatch.setattr(teacher, "flow_loss", lambda velocity, x, text: text.sum() * float("nan"))
    with pytest.raises(SystemExit, match="expected a finite loss"):
        teacher.run(options(data, folder, "--steps", "6"))
    assert load_checkpoint(folder / "run" / "teacher.pt")["step"] == 2


def test_missing_inputs_name_the_command_that_makes_them(data, tmp_path):
    with pytest.raises(SystemExit, match="training.prepare"):
        teacher.run(options(tmp_path, tmp_path))
    with pytest.raises(SystemExit, match="training.cache latents"):
        teacher.run(options(data, tmp_path))
    with pytest.raises(SystemExit, match="training.cache scenes"):
        cache.run("latents", ["--data", str(data), "--run", str(tmp_path / "run"), "--tiny"])
    with pytest.raises(SystemExit, match="training.teacher"):
        students.run(["--kind", "binary", *options(data, tmp_path)])


def test_a_missing_or_other_data_package_names_the_command_that_installs_it(tmp_path):
    with pytest.raises(SystemExit, match="npm pack emojibase-data@17.0.0"):
        check_package(tmp_path, "labels")
    package = tmp_path / "package.json"
    package.write_text('{"name": "@lobehub/fluent-emoji-3d", "version": "1.0.0"}')
    with pytest.raises(SystemExit, match="found @lobehub/fluent-emoji-3d 1.0.0; install it with `npm pack"):
        check_package(tmp_path, "emoji")
    package.write_text('{"name": "@lobehub/fluent-emoji-3d", "version": "1.1.0"}')
    check_package(tmp_path, "emoji")


def test_pieces_round_trip_and_replace_older_ones(tmp_path):
    tensors = {"a": torch.randn(100).half(), "b": torch.arange(6, dtype=torch.uint8), "c": torch.randn(90)}
    save_pieces(tensors, tmp_path, "x", limit=200, notes={"step": 7})
    assert len(list(tmp_path.iterdir())) == 2 and piece_notes(tmp_path, "x") == {"step": 7, "pieces": 2}
    loaded = load_pieces(tmp_path, "x")
    assert torch.equal(loaded["a"], tensors["a"].float()) and torch.equal(loaded["b"], tensors["b"])
    save_pieces({"a": tensors["a"]}, tmp_path, "x", limit=200)
    assert [path.name for path in tmp_path.iterdir()] == ["x-0.safetensors"]
    with pytest.raises(FileNotFoundError, match="y-0.safetensors"):
        load_pieces(tmp_path, "y")


def test_a_lost_piece_is_noticed(tmp_path):
    save_pieces({name: torch.randn(100) for name in "abc"}, tmp_path, "x", limit=200)
    (tmp_path / "x-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="expected 3 pieces of x, found 2"):
        load_pieces(tmp_path, "x")


def test_eight_bit_pieces_are_close_and_half_as_large():
    matrix = torch.randn(64, 256)
    packed = compress({"m": matrix, "v": torch.ones(5)})
    assert packed["m.codes8"].dtype == torch.int8
    error = (expand(packed)["m"] - matrix).square().mean().sqrt()
    assert error < 0.01 * matrix.std() and torch.equal(expand(packed)["v"], torch.ones(5))


def test_an_out_folder_keeps_the_pieces_that_matter_most(tmp_path):
    for stem in ("vae", "text", "teacher", "dense"):
        save_pieces({"a": torch.zeros(500_000)}, tmp_path, stem)
    (tmp_path / "vae.png").write_bytes(b"x" * 100)
    assert limit_folder(tmp_path, megabytes=3.5) == ["vae.png", "teacher-0.safetensors"]
    assert limit_folder(tmp_path, megabytes=3.5) == []
    assert limit_folder(tmp_path, megabytes=100, most_files=2) == ["dense-0.safetensors"]


def test_a_checkpoint_is_never_half_written(tmp_path):
    path = tmp_path / "run" / "x.pt"
    save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle|Can't"):
        save_checkpoint({"step": lambda: None}, path)
    assert load_checkpoint(path)["step"] == 1


def test_a_window_shows_what_the_whole_picture_shows(data):
    render, scenes = Renderer(data, "cpu"), cache.many_scenes(data, 1, 3, 0)
    whole = render(scenes, 64)
    window = torch.tensor([[0.25, 0.5, 0.5]]).expand(3, 3)
    torch.testing.assert_close(render(scenes, 32, window), whole[:, :, 32:64, 16:48])
    wide = render(scenes, (64, 96))
    torch.testing.assert_close(wide[..., 16:80], whole)


def test_quarters_are_joined_again():
    image = torch.randn(3, 2, 8, 8)
    assert vae.quarters(image).shape == (12, 2, 4, 4) and torch.equal(vae.joined(vae.quarters(image)), image)


def test_orthogonal_matrices_have_even_singular_values():
    matrices = torch.randn(2, 96, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_lowers_a_loss_and_restores_its_state():
    torch.manual_seed(0)
    weight, goal = torch.nn.Parameter(torch.zeros(16, 24)), torch.randn(16, 24)
    optimizer = Muon([weight], lr=0.05)
    losses = []
    for _ in range(40):
        loss = (weight - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    again = Muon([weight], lr=0.05)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[weight]["momentum"], optimizer.state[weight]["momentum"])
