"""The embedded model, as a stranger runs it: `build.py generate` draws what diffusers draws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporter.bundle import Bundle
from tests.reference import diffusers_picture, psnr, relative_error

ROOT = Path(__file__).parents[1]
CASES = {"binary": ("火箭，蓝色背景", 5), "ternary": ("a red apple on a blue background", 9909)}


@pytest.mark.parametrize("variant", CASES)
def test_generate_draws_what_diffusers_draws(variant, tmp_path):
    prompt, seed = CASES[variant]
    picture, latents = tmp_path / "picture.png", tmp_path / "latents.npy"
    run = subprocess.run(
        [
            sys.executable,
            "build.py",
            "generate",
            "-p",
            prompt,
            "--seed",
            str(seed),
            "--size",
            "256x256",
            "--steps",
            "4",
            "--variant",
            variant,
            "-o",
            picture,
            "--latents-out",
            latents,
            "--json",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert (facts["model"], facts["variant"], facts["seed"], facts["steps"]) == ("pocket", variant, seed, 4)

    expected = diffusers_picture(ROOT / "models" / "pocket" / variant, prompt, (256, 256), 4, seed)
    found = np.load(latents)
    assert found.shape == expected.latents.shape and found.dtype == np.float32
    errors = [relative_error(a, b) for a, b in zip(found, expected.latents, strict=True)]
    assert max(errors) < 2e-3, errors
    with Image.open(picture) as image:
        assert psnr(np.asarray(image.convert("RGB")), expected.image) >= 40
        assert prompt in image.text["parameters"] and f"Seed: {seed}" in image.text["parameters"]


def test_both_variants_fit_in_40_megabytes():
    files = {p.read_bytes() for p in (ROOT / "models" / "pocket").rglob("*") if p.is_file()}
    assert sum(map(len, files)) <= 40_000_000


@pytest.mark.parametrize("variant", CASES)
def test_the_committed_bundle_is_whole(variant):
    bundle = Bundle(ROOT / "models" / "pocket" / variant)
    bundle.verify()
    assert bundle.manifest["weights"] == variant
