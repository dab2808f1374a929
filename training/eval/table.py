"""Scores out of verdicts: means with confidence intervals, and the table that is printed.

A verdict is a dict: id, kind, language, group, seed, passed. Intervals are 95 % bootstrap intervals. What is
drawn again are groups of prompts (a prompt, its translation and all their seeds), for pictures of one prompt
resemble each other.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from .prompts import CLASSES, LANGUAGES

DRAWS = 2000
LEVEL = 95
LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}


def by_group(verdicts: Iterable[dict], groups: list[str]) -> np.ndarray:
    """[groups, 2]: how many pictures of each group passed, and how many there are."""
    place = {group: number for number, group in enumerate(groups)}
    sums = np.zeros((len(groups), 2))
    for verdict in verdicts:
        sums[place[verdict["group"]]] += verdict["passed"], 1
    return sums


def draws(groups: int, seed: int) -> np.ndarray:
    """How often each group comes in each bootstrap sample, [DRAWS, groups]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=DRAWS)


def bounds(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def score(verdicts: list[dict], seed: int = 0) -> dict[str, float]:
    """{mean, low, high, prompts, pictures} of some verdicts, at least one."""
    groups = sorted({verdict["group"] for verdict in verdicts})
    sums = by_group(verdicts, groups)
    passed, count = sums.sum(0)
    samples = draws(len(groups), seed) @ sums
    low, high = bounds(samples[:, 0] / samples[:, 1])
    prompts = len({verdict["id"] for verdict in verdicts})
    return dict(mean=passed / count, low=low, high=high, prompts=prompts, pictures=int(count))


def share(one: np.ndarray, other: np.ndarray, seed: int) -> dict[str, float]:
    """{mean, low, high} of the score of `one` as a share of the score of `other`, both by the same groups."""

    def ratio(weights: np.ndarray) -> np.ndarray:
        above, below = weights @ one, weights @ other
        return above[..., 0] / above[..., 1] / np.maximum(below[..., 0] / below[..., 1], 1e-9)

    low, high = bounds(ratio(draws(len(one), seed)))
    return dict(mean=float(ratio(np.ones(len(one)))), low=low, high=high)


def language_share(verdicts: list[dict], seed: int = 0) -> dict[str, float]:
    """{mean, low, high, prompts, pictures} of Chinese / English over the truths that were asked in both."""
    of = {language: [v for v in verdicts if v["language"] == language] for language in LANGUAGES}
    both = sorted({v["group"] for v in of["zh"]} & {v["group"] for v in of["en"]})
    kept = {language: [v for v in of[language] if v["group"] in both] for language in LANGUAGES}
    english, chinese = (by_group(kept[language], both) for language in LANGUAGES)

    pictures = sum(map(len, kept.values()))
    return dict(**share(chinese, english, seed), prompts=2 * len(both), pictures=pictures)


def summarise(verdicts: list[dict]) -> dict[str, dict[str, float]]:
    """The rows of the table: the classes, overall, the languages, and Chinese / English where both were asked."""
    rows = {kind: [v for v in verdicts if v["kind"] == kind] for kind in CLASSES}
    rows["overall"] = verdicts
    rows |= {LANGUAGE_NAMES[name]: [v for v in verdicts if v["language"] == name] for name in LANGUAGES}
    table = {name: score(of) for name, of in rows.items() if of}
    if all(name in table for name in LANGUAGE_NAMES.values()):
        table["Chinese / English"] = language_share(verdicts)
    return table


def to_text(table: dict[str, dict[str, float]]) -> str:
    """The table in Markdown, in per cent."""
    lines = [f"| class | score | {LEVEL} % interval | prompts | pictures |", "|---|---|---|---|---|"]
    for name, row in table.items():
        mean, low, high = (f"{100 * row[key]:.1f}" for key in ("mean", "low", "high"))
        lines.append(f"| {name} | {mean} | {low} to {high} | {row['prompts']} | {row['pictures']} |")
    return "\n".join(lines)


def compare(verdicts: list[dict], others: list[dict]) -> dict[str, Any]:
    """The score of `verdicts` against that of `others` for the same prompts and seeds.

    {mean, other, low, high, inside, share, pictures}: low and high bound `other`, `inside` says whether `mean`
    is between them, `share` is mean / other with its own bounds. Raises ValueError if `others` lacks some picture.
    """
    known = {(verdict["id"], verdict["seed"]): verdict for verdict in others}
    missing = [v for v in verdicts if (v["id"], v["seed"]) not in known]
    if missing:
        raise ValueError(
            f"expected every picture in the other scores, found no {missing[0]['id']}-{missing[0]['seed']}"
        )
    others = [known[v["id"], v["seed"]] for v in verdicts]
    mean, other = score(verdicts)["mean"], score(others)
    groups = sorted({verdict["group"] for verdict in verdicts})
    return dict(
        mean=mean,
        other=other["mean"],
        low=other["low"],
        high=other["high"],
        inside=bool(other["low"] - 1e-9 <= mean <= other["high"] + 1e-9),
        share=share(by_group(verdicts, groups), by_group(others, groups), seed=0),
        pictures=len(verdicts),
    )
