"""Arena offsets: no two values overlap while both live, and the exporter computes the same ones."""

import random

import pytest
from playwright.sync_api import Page

from exporter.lower.memory import ALIGNMENT, place

Values = list[tuple[int, int, int, int]]  # bytes, arena, first, last


def random_values(seed: int) -> Values:
    chance = random.Random(seed)
    made = []
    for _ in range(chance.randint(1, 60)):
        first = chance.randint(0, 40)
        made.append((4 * chance.randint(1, 3000), chance.randint(0, 2), first, min(41, first + chance.randint(0, 12))))
    return made


def browser_places(page: Page, cases: list[Values]) -> list[tuple[list[int], list[int]]]:
    script = """async (cases) => {
      const { planArenas } = await load("memory");
      return cases.map((values) => {
        const lives = values.map(([bytes, arena, first, last]) => ({ bytes, arena, first, last }));
        return Object.values(planArenas(lives, 3));
      });
    }"""
    return page.evaluate(script, cases)


def test_live_values_never_overlap(calculator: Page) -> None:
    cases = [random_values(seed) for seed in range(40)]
    for values, (offsets, sizes) in zip(cases, browser_places(calculator, cases), strict=True):
        for i, (size, arena, first, last) in enumerate(values):
            assert offsets[i] % ALIGNMENT == 0
            assert offsets[i] + size <= sizes[arena]
            for j, (other_size, other_arena, other_first, other_last) in enumerate(values[:i]):
                if arena == other_arena and first <= other_last and other_first <= last:
                    assert offsets[i] + size <= offsets[j] or offsets[j] + other_size <= offsets[i], (values, i, j)


def test_exporter_and_runtime_place_alike(calculator: Page) -> None:
    cases = [random_values(seed) for seed in range(100, 140)]
    for values, (offsets, sizes) in zip(cases, browser_places(calculator, cases), strict=True):
        expected_offsets, expected_sizes = place(values)
        assert offsets == expected_offsets
        assert sizes == [expected_sizes.get(arena, 0) for arena in range(3)]


@pytest.mark.parametrize("gap", [255, 256, 257])
def test_a_freed_gap_is_used_again_if_it_is_large_enough(calculator: Page, gap: int) -> None:
    values = [(256, 0, 0, 0), (64, 0, 0, 9), (gap, 0, 1, 9)]
    [(offsets, _)] = browser_places(calculator, [values])
    assert offsets == [0, 256, 0 if gap <= 256 else 512]
