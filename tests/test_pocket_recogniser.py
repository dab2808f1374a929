"""PocketEval's recogniser, on a few drawn shapes: targets, pictures, checks, training, and scores of pictures."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.test_pocket_eval import THINGS
from tests.tiny_pocket import save_tiny_pocket
from training.captions import COLOURS
from training.eval import contact_sheet, detector, layouts, prompts, recognise, renders, score
from training.eval.judge import Detection, Seen, satisfies
from training.eval.prompts import CLASSES, Truth
from training.scenes import Renderer, scene_arrays

FEW = THINGS[:4]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small networks are fastest on one thread, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder with four objects: a disc, a square, a triangle and a bar."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sprites").mkdir()
    (folder / "objects.json").write_text(json.dumps(FEW), "utf-8")
    shapes = [
        ("ellipse", (4, 4, 92, 92), (230, 40, 40, 255)),
        ("rectangle", (10, 10, 86, 86), (40, 90, 230, 255)),
        ("polygon", ((48, 4), (92, 90), (4, 90)), (40, 170, 60, 255)),
        ("rectangle", (36, 2, 60, 94), (240, 220, 60, 255)),
    ]
    for item, (shape, where, colour) in zip(FEW, shapes, strict=True):
        image = Image.new("RGBA", (96, 96))
        getattr(ImageDraw.Draw(image), shape)(where, fill=colour)
        image.save(folder / "sprites" / f"{item['hex']}.webp", lossless=True)
    return folder


def test_targets_mark_the_cells_of_the_centres():
    arrays = dict(index=torch.tensor([[1, -1]]), place=torch.tensor([[[0.9, 0.3, 0.4], [0.1, 0.1, 0.4]]]))
    target = detector.centre_target(arrays, 4, 8)
    assert target.shape == (1, 4, 8) and (target == 1).nonzero().tolist() == [[0, 1, 7]]
    assert 0 < target[0, 2, 7] < 1 and target[0, 3, 0] < 1e-6
    picture, row, column, item = detector.near_cells(arrays, 4, 8)
    assert set(zip(row.tolist(), column.tolist(), strict=True)) == {(y, x) for y in (0, 1, 2) for x in (6, 7)}
    assert set(item.tolist()) == {1} and set(picture.tolist()) == {0}
    assert detector.centre_loss(torch.where(target == 1, 9.0, -9.0), target) < 1e-3


class Oracle(torch.nn.Module):
    """A detector with known answers: features are one-hot names, written into the cells by hand."""

    name, side = torch.nn.Linear(4, 4), 64

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features, centres = torch.zeros(1, 4, 4, 4), torch.full((1, 4, 4), -9.0)
        for number, (y, x, strength) in enumerate([(1, 0, 9.0), (1, 3, 9.0), (3, 1, 0.0)]):
            centres[0, y, x] = 5.0
            features[0, number, y, x] = strength
        centres[0, 2, 1] = 3.0  # a lesser peak beside a greater one is the same object
        return features, centres, torch.nn.functional.one_hot(torch.tensor([2]), len(COLOURS)).float()


def test_detections_become_objects_once_each():
    oracle = Oracle()
    with torch.no_grad():
        oracle.name.weight.copy_(torch.eye(4))
        oracle.name.bias.zero_()
    (made,) = detector.look(oracle, ["a", "b", "c", "d"], torch.zeros(1, 3, 64, 64))
    assert [(one.name, one.x, one.y) for one in made.objects] == [
        ("a", 0.125, 0.375),
        ("b", 0.875, 0.375),
        ("", 0.375, 0.875),  # unsure what it is
    ]
    assert made.background == "grey"
    assert satisfies(Truth(("a", "b"), relation="left"), Seen(made.objects[:2], "red"))


@pytest.mark.parametrize("size, fitted", [((256, 256), (256, 256)), ((512, 512), (256, 256)), ((384, 256), (320, 224))])
def test_pictures_of_any_size_are_looked_at(size, fitted):
    assert detector.fit(torch.zeros(1, 3, *size), 256).shape[2:] == fitted


def test_random_layouts_say_what_they_draw(data):
    torch.manual_seed(0)
    pool = layouts.layout_pool(FEW, 40, 0, "cpu")
    arrays = layouts.random_arrays(300, 4, pool)
    count = (arrays["index"] >= 0).sum(1)
    assert set(count.tolist()) == set(range(7)) and arrays["index"].max() == 3
    there = arrays["index"] >= 0
    assert (arrays["place"][there][:, :2] > 0.05).all() and (arrays["place"][there][:, :2] < 0.95).all()
    named = arrays["background"] >= 0
    nearest = torch.cdist(arrays["rgb"], layouts.PALETTE).argmin(1)
    assert (nearest == arrays["background"])[named].float().mean() > 0.95 and 0.1 < (~named).float().mean() < 0.4
    image = Renderer(data, "cpu")({key: value[:4] for key, value in arrays.items()}, 64)
    worn = layouts.wear(image)
    assert worn.shape == image.shape and worn.abs().max() <= 1 and not torch.equal(worn, image)


def test_held_out_renders_are_right_or_wrong_as_they_say(data):
    made = prompts.build(THINGS, per_class=6)
    cases, arrays = renders.trials(made, THINGS, repeats=2, seed=0)
    assert len(cases) == 6 * 6 * 4 and sum(right for _, right in cases) == len(cases) / 2
    names = [item["hex"] for item in THINGS]
    colours = torch.tensor([rgb for rgb, _ in COLOURS.values()]) / 255
    answers = []
    for index, place, rgb in zip(arrays["index"], arrays["place"], arrays["rgb"], strict=True):
        found = [Detection(names[i], float(x), float(y)) for i, (x, y, _) in zip(index, place, strict=True) if i >= 0]
        answers.append(Seen(tuple(found), list(COLOURS)[int(torch.cdist(rgb[None], colours).argmin())]))
    assert [satisfies(prompt.truth, answer) for (prompt, _), answer in zip(cases, answers, strict=True)] == [
        right for _, right in cases
    ]
    waiting = iter(answers)
    few = {key: value % 4 if key == "index" else value for key, value in arrays.items()}
    shares = renders.accuracy(
        cases, few, Renderer(data, "cpu"), lambda image: [next(waiting) for _ in range(len(image))], size=32
    )
    assert all(row == {"passed": 1.0, "refused": 1.0, "accuracy": 1.0} for row in shares.values())


def test_twenty_steps_lower_the_recognisers_loss(data):
    torch.manual_seed(0)
    net = detector.Detector(4, width=8)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    render, pool = Renderer(data, "cpu"), layouts.layout_pool(FEW, 40, 0, "cpu")
    arrays = layouts.random_arrays(32, 4, pool)
    image = render(arrays, 64)

    @torch.no_grad()
    def loss() -> float:
        return detector.loss_of(net, net(image), arrays).item()

    before = loss()
    losses = [recognise.training_step(net, net, optimizer, render, pool, 4, 8, 64).item() for _ in range(20)]
    assert np.isfinite(losses).all() and loss() < 0.8 * before


def test_the_recogniser_trains_resumes_and_scores_a_folder(data, tmp_path, capsys, monkeypatch):
    few = prompts.build(THINGS, per_class=2)
    small = [replace(p, truth=Truth(("h0", "h1")[: len(p.truth.objects)], p.truth.count)) for p in few]
    for module in (recognise, score):
        monkeypatch.setattr(module, "build", lambda objects, per_class=2: small)
    run = tmp_path / "run"
    common = ["--data", str(data), "--run", str(run)]
    arguments = [*common, "--tiny", "--steps", "4", "--stop-after", "2"]
    for calls in (1, 2, 3):  # the second call goes on where the first stopped, the third has nothing to do
        if calls < 3:
            with pytest.raises(SystemExit, match="found none or a part"):
                recognise.load(run / "recogniser.pt", "cpu")
        assert recognise.run(arguments) is (calls > 1)
    state = torch.load(run / "recogniser.pt")
    assert state["step"] == 4 and "optimizer" not in state and set(state["accuracy"]["clean"]) == {*CLASSES, "overall"}
    stages = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in stages} == {"recogniser", "recogniser-check"}

    pictures = tmp_path / "pictures"
    asked = [(prompt, seed) for prompt in small for seed in (0, 1, 2)]
    arrays = scene_arrays([renders.scene_for(prompt.truth, FEW, random.Random(0)) for prompt, _ in asked])
    images = Renderer(data, "cpu")({key: torch.from_numpy(value) for key, value in arrays.items()}, 64)
    score.save_pictures(pictures, asked, images)
    out = tmp_path / "scores.json"
    arguments = [*common, "--device", "cpu", "--pictures", str(pictures), "-o", str(out)]
    capsys.readouterr()
    score.main(arguments)
    made = json.loads(out.read_text("utf-8"))
    assert len(made["pictures"]) == len(asked) and made["benchmark"] == prompts.sha256(small)
    assert "| overall |" in capsys.readouterr().out
    score.main([*arguments, "--against", str(out)])
    assert json.loads(out.read_text("utf-8"))["against"]["inside"]
    (pictures / "two-001-en-1.png").unlink()
    with pytest.raises(SystemExit, match=r"found no two-001-en-1\.png \(1 missing\)"):
        score.main(arguments)


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory) -> Path:
    """A diffusers folder with tiny random networks of training/model.py."""
    folder = tmp_path_factory.mktemp("pipeline")
    save_tiny_pocket(folder)
    return folder


def test_pictures_of_a_batch_are_the_pipelines_own(pipeline_folder, tmp_path):
    from diffusers import Flux2KleinPipeline

    from training.model import TEXT_LAYERS, TEXT_LENGTH

    asked = [(prompt, seed) for prompt in prompts.build(THINGS, 2)[:2] for seed in (3, 4)]
    pipeline = Flux2KleinPipeline.from_pretrained(str(pipeline_folder))
    pipeline.set_progress_bar_config(disable=True)
    drawn = list(score.draw(pipeline_folder, asked, (48, 32), "cpu", batch=3))
    assert [len(some) for some, _ in drawn] == [3, 1]
    for (prompt, seed), picture in zip(asked, torch.cat([images for _, images in drawn]), strict=True):
        own = pipeline(
            prompt=prompt.text,
            generator=torch.Generator().manual_seed(seed),
            width=48,
            height=32,
            num_inference_steps=4,
            max_sequence_length=TEXT_LENGTH,
            text_encoder_out_layers=TEXT_LAYERS,
            output_type="pt",
        ).images
        assert picture.shape == (3, 32, 48) and (picture - score.eight_bits(own[0])).abs().max() < 0.02
    score.save_pictures(tmp_path, *drawn[0])
    back = [image for _, image in score.read(tmp_path, asked[:3], "cpu")]
    assert torch.allclose(torch.cat(back), drawn[0][1], atol=1e-6)
    assert not torch.equal(back[0], back[1])


def test_a_contact_sheet_shows_every_model_beside_the_others(data, pipeline_folder, tmp_path, monkeypatch, capsys):
    asked = prompts.build(THINGS, 8)
    monkeypatch.setattr(contact_sheet, "build", lambda objects: asked)
    out = tmp_path / "sheet.png"
    folders = [str(pipeline_folder)] * 2
    contact_sheet.main(
        ["--data", str(data), "--pipelines", *folders, "-o", str(out), "--size", "48", "32", "--device", "cpu"]
    )
    sheet = np.asarray(Image.open(out)).reshape(6, 32, 4, 48, 3)
    assert (sheet[:, :, 0] == sheet[:, :, 1]).all() and (sheet[:, :, 2] == sheet[:, :, 3]).all()
    assert (sheet[:, :, 0] != sheet[:, :, 2]).any()
    lines = capsys.readouterr().out.splitlines()
    by_id = {prompt.id: prompt.text for prompt in asked}
    assert lines == [f"{by_id[f'{kind}-005-en']} | {by_id[f'{kind}-006-zh']}" for kind in prompts.CLASSES]
