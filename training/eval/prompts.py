"""PocketEval's prompts: six classes of held-out combinations with exact ground truth, a third in Chinese.

    python -m training.eval.prompts --data DIR -o prompts.jsonl [--requests requests.jsonl --per-class 20]

The list follows from objects.json and the seed alone; README.md has its SHA-256. Every prompt asks for
a combination that no training scene shows (held_out.py). Each Chinese prompt says what an English one says,
so that the two languages are compared on the same pictures. `--requests` writes a part of the list as
`build.py generate --prompts` reads it: one line a prompt and seed, named PROMPT-SEED.
"""

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..captions import CHINESE_COUNTS, COLOURS, ENGLISH_COUNTS, article, plural
from .held_out import held_out_colour, held_out_count, held_out_pair

CLASSES = ("single", "two", "count", "colour", "position", "colour-position")
LANGUAGES = ("en", "zh")
PER_CLASS = 72  # English prompts of a class; every second one is asked in Chinese, too
SEED = 1
SEEDS = (0, 1, 2)  # pictures of a prompt
TRIES = 300  # draws for each prompt, of which about one in 36 is held out
RELATIONS = {
    "left": ("to the left of", "左边"),
    "right": ("to the right of", "右边"),
    "above": ("above", "上面"),
    "below": ("below", "下面"),
}


@dataclass(frozen=True, slots=True)
class Truth:
    """What a picture must show: `count` of one object, or two objects once each, and nothing else.

    `objects` are `hex` names; `relation` reads "the first is <relation> the second"; None: any place, any
    background.
    """

    objects: tuple[str, ...]
    count: int = 1
    relation: str | None = None
    background: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. `id` is CLASS-NUMBER-LANGUAGE; prompts with one `group` differ in language alone."""

    id: str
    kind: str
    language: str
    text: str
    truth: Truth

    @property
    def group(self) -> str:
        return self.id.rpartition("-")[0]


def plain_names(objects: list[dict]) -> dict[str, dict[str, str]]:
    """{hex: {language: name}}: the shorter of label and first everyday name that means this object alone.

    Objects without such a name in either language are left out.
    """
    taken = {
        language: Counter(
            name
            for item in objects
            for name in {item[language]["label"], *item[language]["extra"], *item[language]["tags"]}
        )
        for language in LANGUAGES
    }
    names = {}
    for item in objects:
        own = {lang: [item[lang]["label"], *item[lang]["extra"][:1]] for lang in LANGUAGES}
        alone = {lang: [name for name in own[lang] if taken[lang][name] == 1] for lang in LANGUAGES}
        if all(alone.values()):
            names[item["hex"]] = {lang: min(alone[lang], key=len) for lang in LANGUAGES}
    return names


def english(truth: Truth, names: list[str]) -> str:
    """The prompt for `truth`; `names` are its objects' English names."""
    if len(names) == 2:
        joint = RELATIONS[truth.relation][0] if truth.relation else "and"
        text = f"{article(names[0])} {joint} {article(names[1])}"
    elif truth.count > 1:
        text = f"{ENGLISH_COUNTS[truth.count]} {plural(names[0])}"
    else:
        text = article(names[0])
    return f"{text} on {article(truth.background)} background" if truth.background else text


def chinese(truth: Truth, names: list[str], measure: str) -> str:
    """As `english`, in Chinese; `measure` is the first object's measure word."""
    if len(names) == 2:
        place = RELATIONS[truth.relation][1] if truth.relation else None
        text = f"{names[0]}在{names[1]}的{place}" if place else f"{names[0]}和{names[1]}"
    elif truth.count > 1:
        text = f"{CHINESE_COUNTS[truth.count]}{measure}{names[0]}"
    else:
        text = names[0]
    return f"{text}，{COLOURS[truth.background][1][0]}背景" if truth.background else text


def draw(kind: str, number: int, names: dict[str, dict[str, str]], rng: random.Random) -> Truth | None:
    """A random truth of a class, or None if it is not held out.

    Colour, relation and count follow from its number in the class: all come equally often, in each language.
    """
    one, two = rng.choices(list(names), k=2)
    turn = number // 2
    colour, relation, count = list(COLOURS)[turn % len(COLOURS)], list(RELATIONS)[turn % 4], 2 + turn % 3
    pair = one != two and held_out_pair(one, two)
    truth, held_out = {
        "single": (Truth((one,)), held_out_colour(one, None)),
        "two": (Truth((one, two)), pair),
        "count": (Truth((one,), count), held_out_count(one, count) and countable(names[one]["en"])),
        "colour": (Truth((one,), background=colour), held_out_colour(one, colour)),
        "position": (Truth((one, two), relation=relation), pair),
        "colour-position": (Truth((one, two), 1, relation, colour), pair and held_out_colour(one, colour)),
    }[kind]
    return truth if held_out else None


def countable(name: str) -> bool:
    """Whether an English name is one thing's: "three grapes" would not say how many bunches."""
    return article(name) != name and " and " not in name


def build(objects: list[dict], per_class: int = PER_CLASS, seed: int = SEED) -> list[Prompt]:
    """The benchmark: per class `per_class` English prompts and half as many Chinese ones.

    Raises ValueError if the objects do not give that many different truths.
    """
    names, measures = plain_names(objects), {item["hex"]: item["measure"] for item in objects}
    prompts = []
    for kind in CLASSES:
        truths: dict[Truth, None] = {}  # in order, each once
        rng = random.Random(f"{seed}/{kind}")
        for _ in range(TRIES * per_class):
            if len(truths) == per_class:
                break
            if truth := draw(kind, len(truths), names, rng):
                truths[truth] = None
        if len(truths) < per_class:
            raise ValueError(f"{kind}: expected {per_class} prompts, found {len(truths)} for {len(names)} objects")
        for number, truth in enumerate(truths):
            own = {language: [names[name][language] for name in truth.objects] for language in LANGUAGES}
            texts = {"en": english(truth, own["en"])}
            if number % 2 == 0:
                texts["zh"] = chinese(truth, own["zh"], measures[truth.objects[0]])
            for language, text in texts.items():
                prompts.append(Prompt(f"{kind}-{number:03}-{language}", kind, language, text, truth))
    return prompts


def to_lines(prompts: list[Prompt]) -> str:
    """The list as JSON lines, one prompt a line."""
    return "".join(json.dumps(asdict(prompt), ensure_ascii=False) + "\n" for prompt in prompts)


def sha256(prompts: list[Prompt]) -> str:
    """The list's name: two scores with the same one asked the same."""
    return hashlib.sha256(to_lines(prompts).encode()).hexdigest()


def part(prompts: list[Prompt], per_class: int | None) -> list[Prompt]:
    """The first `per_class` prompts of each class, both languages counted; None: all."""
    seen: Counter[str] = Counter()
    kept = []
    for prompt in prompts:
        seen[prompt.kind] += 1
        if per_class is None or seen[prompt.kind] <= per_class:
            kept.append(prompt)
    return kept


def picture_name(prompt: Prompt, seed: int) -> str:
    """The name of a picture, without its suffix."""
    return f"{prompt.id}-{seed}"


def requests(prompts: list[Prompt], seeds: Iterable[int]) -> str:
    """JSON lines for `build.py generate --prompts`."""
    return "".join(
        json.dumps({"id": picture_name(prompt, seed), "prompt": prompt.text, "seed": seed}, ensure_ascii=False) + "\n"
        for prompt in prompts
        for seed in seeds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, help="write the list here")
    parser.add_argument("--requests", type=Path, help="write lines for build.py generate --prompts here")
    parser.add_argument("--per-class", type=int, help="prompts of a class in --requests (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds a prompt in --requests")
    args = parser.parse_args()
    prompts = build(json.loads((args.data / "objects.json").read_text("utf-8")))
    if args.out:
        args.out.write_text(to_lines(prompts), "utf-8")
    if args.requests:
        args.requests.write_text(requests(part(prompts, args.per_class), args.seeds), "utf-8")
    print(f"{len(prompts)} prompts, SHA-256 {sha256(prompts)}")


if __name__ == "__main__":
    main()
