"""How often the recogniser is right: pictures rendered to fit a prompt must pass, spoiled ones must not."""

import random
from collections.abc import Callable
from dataclasses import replace

import torch

from ..captions import COLOURS
from ..scenes import Renderer, draw_scene, scene_arrays
from .judge import satisfies
from .prompts import CLASSES, RELATIONS, Prompt, Truth

Look = Callable[[torch.Tensor], list]


def scene_for(truth: Truth, objects: list[dict], rng: random.Random) -> dict:
    """A scene as training lays them out that shows `truth`: drawn until its layout fits, then filled in."""
    kind = "pair" if len(truth.objects) == 2 else "many" if truth.count > 1 else "one"
    index = {item["hex"]: number for number, item in enumerate(objects)}
    while True:
        scene = draw_scene(kind, objects, rng)
        if (
            scene["count"] == truth.count
            and truth.relation in (None, scene["relation"])
            and truth.background in (None, scene["background"])
        ):
            break
    numbers = [index[name] for name in truth.objects] * truth.count
    scene["objects"] = [objects[number] for number in numbers[: len(truth.objects)]]
    scene["slots"] = [(number, *slot[1:]) for number, slot in zip(numbers, scene["slots"], strict=True)]
    return scene


def spoil(truth: Truth, names: list[str], rng: random.Random) -> Truth:
    """A truth that differs from `truth` in one thing: an object, the count, the relation or the background."""
    first, *rest = truth.objects
    other = rng.choice([name for name in names if name not in truth.objects])
    ways = [replace(truth, objects=(other, *rest))]
    if rest:
        ways.append(Truth((first,), background=truth.background))
    else:
        ways.append(replace(truth, count=rng.choice([n for n in (1, 2, 3, 4) if n != truth.count])))
    if truth.relation:
        ways.append(replace(truth, relation=rng.choice([one for one in RELATIONS if one != truth.relation])))
    if truth.background:
        ways.append(replace(truth, background=rng.choice([one for one in COLOURS if one != truth.background])))
    return rng.choice(ways)


def trials(
    prompts: list[Prompt], objects: list[dict], repeats: int, seed: int
) -> tuple[list[tuple[Prompt, bool]], dict[str, torch.Tensor]]:
    """`repeats` right and as many wrong pictures of every English prompt: (prompt, is right), and their arrays."""
    rng, names = random.Random(f"renders/{seed}"), [item["hex"] for item in objects]
    cases, scenes = [], []
    for prompt in prompts:
        for right in (True, False) * repeats if prompt.language == "en" else ():
            truth = prompt.truth if right else spoil(prompt.truth, names, rng)
            cases.append((prompt, right))
            scenes.append(scene_for(truth, objects, rng))
    return cases, {key: torch.from_numpy(value) for key, value in scene_arrays(scenes).items()}


def accuracy(
    cases: list[tuple[Prompt, bool]], arrays: dict[str, torch.Tensor], render: Renderer, look: Look, size: int = 256
) -> dict[str, dict[str, float]]:
    """For each class and "overall": `passed`, the share of right pictures that pass; `refused`, the share of
    wrong ones that do not; `accuracy`, their mean. `look` turns pictures [B, 3, size, size] into what it sees."""
    verdicts = []
    for first in range(0, len(cases), 64):
        part = {key: value[first : first + 64].to(render.device) for key, value in arrays.items()}
        for (prompt, right), seen in zip(cases[first : first + 64], look(render(part, size)), strict=True):
            verdicts.append((prompt.kind, right, satisfies(prompt.truth, seen)))
    table = {}
    for kind in (*CLASSES, "overall"):
        of = [(right, said) for name, right, said in verdicts if kind in (name, "overall")]
        passed = [said for right, said in of if right]
        refused = [not said for right, said in of if not right]
        shares = [sum(one) / max(len(one), 1) for one in (passed, refused)]
        table[kind] = {"passed": shares[0], "refused": shares[1], "accuracy": sum(shares) / 2}
    return table
