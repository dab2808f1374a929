"""PocketEval: what is held out, the prompts, the judge and the scores. The recogniser: test_pocket_recogniser.py."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from training.captions import COLOURS
from training.eval import held_out, prompts, table
from training.eval.judge import Detection, Seen, satisfies
from training.eval.prompts import CLASSES, Truth
from training.scenes import random_scene


def thing(number: int) -> dict:
    return {
        "hex": f"h{number}",
        "en": {"label": f"thing {number}", "extra": [], "tags": []},
        "zh": {"label": f"东西{number}", "extra": [], "tags": []},
        "measure": "个",
        "colour": None,
    }


THINGS = [thing(number) for number in range(60)]


def test_the_held_out_rule_is_stable_and_leaves_out_a_sixth():
    pairs = list(itertools.combinations((item["hex"] for item in THINGS), 2))
    chosen = [pair for pair in pairs if held_out.held_out_pair(*pair)]
    assert 0.12 < len(chosen) / len(pairs) < 0.21
    assert all(held_out.held_out_pair(two, one) for one, two in chosen)
    assert not any(held_out.held_out_count(item["hex"], 1) for item in THINGS)
    colours = [held_out.held_out_colour(item["hex"], colour) for item in THINGS for colour in [*COLOURS, None]]
    assert 0.13 < np.mean(colours) < 0.20


def test_the_held_out_rule_never_changes():
    """Published scores depend on it."""
    cat, pizza = "1f431", "1f355"
    assert held_out.held_out_pair(cat, pizza) and not held_out.held_out_pair(cat, "1f34e")
    assert [count for count in (1, 2, 3, 4) if held_out.held_out_count(cat, count)] == [3]
    assert [colour for colour in [*COLOURS, None] if held_out.held_out_colour(pizza, colour)] == ["brown", None]


def test_no_training_scene_shows_what_is_held_out():
    rng = random.Random(0)
    kinds = {"one": 0, "many": 0, "pair": 0}
    for _ in range(6000):
        scene = random_scene(THINGS, rng)
        names = [item["hex"] for item in scene["objects"]]
        kinds[scene["kind"]] += 1
        assert not any(held_out.held_out_colour(name, scene["background"]) for name in names)
        assert not held_out.held_out_count(names[0], scene["count"])
        assert len(names) == 1 or not held_out.held_out_pair(*names)
    assert [round(count / 6000, 1) for count in kinds.values()] == [0.5, 0.2, 0.3]  # no kind became rarer


def test_objects_that_are_all_held_out_are_an_error():
    pairs = itertools.combinations(THINGS, 2)
    pair = next(pair for pair in pairs if held_out.held_out_pair(pair[0]["hex"], pair[1]["hex"]))
    with pytest.raises(ValueError, match="expected a scene that is not held out, found none of 2 objects"):
        for _ in range(50):
            random_scene(list(pair), random.Random(0))


def test_every_prompt_is_held_out():
    rules = {
        "single": lambda truth: held_out.held_out_colour(truth.objects[0], None),
        "two": lambda truth: held_out.held_out_pair(*truth.objects),
        "count": lambda truth: held_out.held_out_count(truth.objects[0], truth.count),
        "colour": lambda truth: held_out.held_out_colour(truth.objects[0], truth.background),
        "position": lambda truth: held_out.held_out_pair(*truth.objects),
        "colour-position": lambda truth: (
            held_out.held_out_pair(*truth.objects) and held_out.held_out_colour(truth.objects[0], truth.background)
        ),
    }
    made = prompts.build(THINGS, per_class=8)
    assert {prompt.kind for prompt in made} == set(CLASSES)
    for prompt in made:
        assert rules[prompt.kind](prompt.truth), prompt
        names, truth = list(prompt.truth.objects), prompt.truth
        assert held_out.is_held_out(names, truth.count, truth.background)


def test_the_list_is_the_same_every_time_and_a_third_is_chinese():
    made = prompts.build(THINGS, per_class=8)
    assert prompts.to_lines(made) == prompts.to_lines(prompts.build(THINGS, per_class=8))
    assert prompts.sha256(made) != prompts.sha256(prompts.build(THINGS, per_class=8, seed=2))
    assert len({prompt.id for prompt in made}) == len(made) == 6 * 12
    chinese = [prompt for prompt in made if prompt.language == "zh"]
    english = {prompt.group: prompt for prompt in made if prompt.language == "en"}
    assert len(chinese) * 3 == len(made)
    for prompt in chinese:
        assert english[prompt.group].truth == prompt.truth and "东西" in prompt.text
    for kind in CLASSES:
        assert len({p.truth for p in english.values() if p.kind == kind}) == 8
    assert [p.id for p in prompts.part(made, 3) if p.kind == "two"] == ["two-000-en", "two-000-zh", "two-001-en"]
    assert 6 * prompts.PER_CLASS * 1.5 >= 600
    with pytest.raises(ValueError, match="single: expected 60 prompts, found"):
        prompts.build(THINGS, per_class=60)


@pytest.mark.parametrize(
    "truth, english, chinese",
    [
        (Truth(("h1",)), "a thing 1", "东西1"),
        (Truth(("h1",), 3), "three thing 1s", "三个东西1"),
        (Truth(("h1", "h2")), "a thing 1 and a thing 2", "东西1和东西2"),
        (Truth(("h1",), background="orange"), "a thing 1 on an orange background", "东西1，橙色背景"),
        (
            Truth(("h1", "h2"), 1, "left", "red"),
            "a thing 1 to the left of a thing 2 on a red background",
            "东西1在东西2的左边，红色背景",
        ),
    ],
)
def test_wording(truth, english, chinese):
    numbers = [int(name[1:]) for name in truth.objects]
    assert prompts.english(truth, [f"thing {n}" for n in numbers]) == english
    assert prompts.chinese(truth, [f"东西{n}" for n in numbers], "个") == chinese


def test_names_are_short_and_mean_one_object_alone():
    twin = thing(61) | {"zh": {"label": "东西62", "extra": ["东西5"], "tags": []}}
    robot = thing(63) | {"en": {"label": "thing 63, tilted", "extra": ["tilted", "robot"], "tags": []}}
    names = prompts.plain_names([*THINGS, twin, robot])
    assert "h5" not in names and names["h6"] == {"en": "thing 6", "zh": "东西6"}
    assert names["h61"]["zh"] == "东西62" and names["h63"]["en"] == "tilted"
    assert prompts.countable("cat") and not prompts.countable("grapes") and not prompts.countable("bow and arrow")


def seen(*objects: tuple[str, float, float], background: str = "red") -> Seen:
    return Seen(tuple(Detection(*one) for one in objects), background)


@pytest.mark.parametrize(
    "truth, picture, expected",
    [
        (Truth(("a",)), seen(("a", 0.5, 0.5)), True),
        (Truth(("a",)), seen(("b", 0.5, 0.5)), False),
        (Truth(("a",)), seen(), False),
        (Truth(("a",)), seen(("a", 0.3, 0.5), ("a", 0.7, 0.5)), False),
        (Truth(("a",)), seen(("a", 0.3, 0.5), ("", 0.7, 0.5)), False),
        (Truth(("a",), 3), seen(*[("a", x, 0.5) for x in (0.2, 0.5, 0.8)]), True),
        (Truth(("a",), 3), seen(*[("a", x, 0.5) for x in (0.2, 0.4, 0.6, 0.8)]), False),
        (Truth(("a",), 2), seen(("a", 0.2, 0.5), ("b", 0.8, 0.5)), False),
        (Truth(("a",), background="red"), seen(("a", 0.5, 0.5)), True),
        (Truth(("a",), background="red"), seen(("a", 0.5, 0.5), background="pink"), False),
        (Truth(("a", "b")), seen(("b", 0.2, 0.5), ("a", 0.8, 0.5)), True),
        (Truth(("a", "b")), seen(("a", 0.2, 0.5)), False),
        (Truth(("a", "b"), relation="left"), seen(("a", 0.2, 0.5), ("b", 0.8, 0.5)), True),
        (Truth(("a", "b"), relation="left"), seen(("a", 0.8, 0.5), ("b", 0.2, 0.5)), False),
        (Truth(("a", "b"), relation="left"), seen(("a", 0.45, 0.5), ("b", 0.5, 0.5)), False),
        (Truth(("a", "b"), relation="left"), seen(("a", 0.4, 0.2), ("b", 0.6, 0.8)), False),
        (Truth(("a", "b"), relation="right"), seen(("a", 0.8, 0.5), ("b", 0.2, 0.5)), True),
        (Truth(("a", "b"), relation="above"), seen(("a", 0.5, 0.2), ("b", 0.5, 0.8)), True),
        (Truth(("a", "b"), relation="below"), seen(("a", 0.5, 0.2), ("b", 0.5, 0.8)), False),
        (Truth(("a", "b"), 1, "below", "red"), seen(("a", 0.5, 0.8), ("b", 0.5, 0.2)), True),
        (Truth(("a", "b"), 1, "below", "blue"), seen(("a", 0.5, 0.8), ("b", 0.5, 0.2)), False),
    ],
)
def test_the_judge(truth, picture, expected):
    assert satisfies(truth, picture) is expected


def verdicts(shares: dict[str, float], groups: int = 40) -> list[dict]:
    """Made-up verdicts: of every `groups` groups a share passes in each language, three seeds each."""
    return [
        dict(id=f"{kind}-{n}-{lang}", kind=kind, language=lang, group=f"{kind}-{n}", seed=s, passed=n < share * groups)
        for kind in CLASSES
        for lang, share in shares.items()
        for n in range(groups)
        for s in range(3)
    ]


def test_scores_and_intervals():
    made = table.summarise(verdicts({"en": 0.8, "zh": 0.6}))
    assert list(made) == [*CLASSES, "overall", "English", "Chinese", "Chinese / English"]
    assert made["English"]["mean"] == pytest.approx(0.8) and made["Chinese"]["mean"] == pytest.approx(0.6)
    assert made["overall"]["mean"] == pytest.approx(0.7) and made["overall"]["pictures"] == 6 * 2 * 40 * 3
    assert made["Chinese / English"]["mean"] == pytest.approx(0.75)
    row = made["English"]
    width = 1.96 * (0.8 * 0.2 / 240) ** 0.5  # seeds agree here, so only the 240 groups count
    assert row["low"] == pytest.approx(0.8 - width, abs=0.006) and row["high"] == pytest.approx(0.8 + width, abs=0.006)
    assert table.score(verdicts({"en": 1.0}))["low"] == 1.0
    assert "| overall | 70.0 |" in table.to_text(made)
    assert table.summarise(verdicts({"en": 0.8})) == table.summarise(verdicts({"en": 0.8}))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, inside = random.Random(0), 0
    for trial in range(40):
        sample = [
            dict(id=f"{n}-en", kind="two", language="en", group=str(n), seed=0, passed=rng.random() < 0.7)
            for n in range(100)
        ]
        row = table.score(sample, seed=trial)
        inside += row["low"] <= 0.7 <= row["high"]
    assert 34 <= inside <= 40


def test_two_scores_are_compared_on_the_same_pictures():
    torch_made, browser = verdicts({"en": 0.8, "zh": 0.8}), verdicts({"en": 0.8, "zh": 0.8})[::7]
    result = table.compare(browser, torch_made)
    assert result["inside"] and result["pictures"] == len(browser) and result["mean"] == result["other"]
    assert result["share"] == {"mean": 1.0, "low": 1.0, "high": 1.0}  # the same groups are drawn for both
    half = [one | {"passed": one["passed"] and one["seed"] > 0} for one in torch_made]
    lower = table.compare(half, torch_made)["share"]
    assert lower["mean"] == pytest.approx(2 / 3) and lower["high"] - lower["low"] < 1e-9
    assert not table.compare([one | {"passed": False} for one in browser], torch_made)["inside"]
    with pytest.raises(ValueError, match="found no single-0-zh-0"):
        table.compare(torch_made, [one for one in torch_made if one["language"] == "en"])


def test_requests_are_lines_that_generate_reads(tmp_path):
    from exporter.batch import read_jobs
    from exporter.generate import Request

    some = prompts.part(prompts.build(THINGS, per_class=3), 2)
    (tmp_path / "requests.jsonl").write_text(prompts.requests(some, (0, 7)), "utf-8")
    sizes = {"multiple": 16, "minimum": 64, "maximum": 512}
    jobs = read_jobs(tmp_path / "requests.jsonl", Request("", 256, 256, 4, 9909), sizes)
    assert [(job.id, job.request.seed) for job in jobs[:2]] == [("single-000-en-0", 0), ("single-000-en-7", 7)]
    assert len(jobs) == 6 * 2 * 2 and jobs[2].request.prompt == some[1].text
