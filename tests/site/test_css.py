"""Colours: every pair that the page uses has enough contrast, in both themes."""

from __future__ import annotations

import re

import pytest

from exporter.pages import SOURCE

TEXT, EDGE = 4.5, 3.0  # WCAG 2.2: 1.4.3 and 1.4.11
PAIRS = [
    ("ink", "page", TEXT), ("ink", "surface", TEXT), ("ink", "well", TEXT), ("ink", "danger-surface", TEXT),
    ("muted", "page", TEXT), ("muted", "surface", TEXT), ("muted", "well", TEXT),
    ("accent", "surface", TEXT), ("accent", "danger-surface", TEXT), ("danger", "surface", TEXT),
    ("danger", "danger-surface", TEXT), ("on-accent", "accent", TEXT), ("on-accent", "accent-hover", TEXT),
    ("edge", "surface", EDGE), ("edge", "page", EDGE), ("focus", "surface", EDGE), ("focus", "page", EDGE),
    ("accent", "hairline", EDGE), ("accent", "page", EDGE),
]  # fmt: skip


def themes() -> dict[str, dict[str, str]]:
    """Colour tokens of both themes; dark takes from light what it leaves out."""
    text = (SOURCE / "css" / "tokens.css").read_text("utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6});", part)) for part in text.split("@media", 1))
    return {"light": light, "dark": {**light, **dark}}


def luminance(colour: str) -> float:
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_wcag_does():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("front", "back", "least"), PAIRS)
def test_colours_have_enough_contrast(theme, front, back, least):
    tokens = themes()[theme]
    assert contrast(tokens[front], tokens[back]) >= least


def test_dark_theme_sets_every_colour():
    text = (SOURCE / "css" / "tokens.css").read_text("utf-8")
    light, dark = (set(re.findall(r"--([\w-]+):\s*#", part)) for part in text.split("@media", 1))
    assert light == dark and len(light) > 10


def test_colours_come_from_tokens_alone():
    for name in ("base.css", "studio.css"):
        assert re.findall(r"#[0-9a-f]{3,8}\b(?=\s*[;,)])", (SOURCE / "css" / name).read_text("utf-8")) == []


def test_browser_bar_has_the_page_colour():
    page = (SOURCE / "templates" / "index.html.j2").read_text("utf-8")
    tokens = themes()
    for theme in ("light", "dark"):
        assert f'(prefers-color-scheme: {theme})" content="{tokens[theme]["page"]}"' in page
