"""The real page with the real runtime and a small random model: from the command line, and offline."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from exporter.packages import ROOT
from exporter.serve import serving
from exporter.website import build_site


@pytest.fixture(scope="module")
def bundle(exported) -> Path:
    return exported("two-heads-ternary")


def run(*arguments: object) -> subprocess.CompletedProcess:
    """The command line in a process of its own, as a user runs it."""
    command = [sys.executable, str(ROOT / "build.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_generate_writes_picture_latents_and_facts(bundle, tmp_path):
    out, latents = tmp_path / "out.png", tmp_path / "latents.npy"
    done = run(
        "generate", "-p", "火箭，蓝色背景", "--model", bundle, "--size", "48x64", "--steps", 3, "--seed", 12, "-o", out,
        "--latents-out", latents, "--adapter", "software", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (facts["width"], facts["height"], facts["seed"], facts["steps"]) == (48, 64, 12, 3)
    assert facts["prompt"] == "火箭，蓝色背景" and facts["variant"] == "ternary" and "swiftshader" in facts["adapter"]
    assert (
        set(facts["peak_bytes"]) == {"modulation", "encode", "denoise", "decode"}
        and min(facts["peak_bytes"].values()) > 1e5
    )
    assert {"compile", "download", "encode", "denoise", "decode", "total"} == set(facts["seconds"])
    image = Image.open(out)
    assert image.size == (48, 64) and len(image.getcolors(48 * 64)) > 16
    settings = "Steps: 3, Sampler: Euler, CFG scale: 1, Seed: 12, Size: 48x64, "
    assert image.text["parameters"].startswith(f"火箭，蓝色背景\n{settings}")
    values = np.load(latents)
    assert values.shape == (3, 12, 16) and values.dtype == np.float32
    assert np.isfinite(values).all() and 0.1 < values.std() < 10
    phases = ("Preparing the shaders", "Downloading the model", "Reading your prompt", "Drawing")
    assert any(line.startswith(phases) for line in done.stderr.splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents.npy", "out.png"]


def test_a_site_is_built_without_torch(bundle, tmp_path):
    script = (
        "import sys; sys.modules.update(torch=None, diffusers=None, transformers=None, onnxruntime=None);"
        "import build; sys.exit(build.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "site", bundle, "-o", tmp_path / "dist"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dist" / "index.html").exists()


def test_serve_prints_an_address_that_answers(bundle, tmp_path):
    build_site([bundle], tmp_path / "dist")
    script = "import sys, pathlib, build; build.DIST = pathlib.Path(sys.argv[1]); build.main(['serve', '--port', '0'])"
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "dist"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            url = re.search(r"http://\S+", server.stdout.readline())[0]
            with urllib.request.urlopen(url) as answer:
                assert answer.status == 200 and b"<title>Bitbrush" in answer.read()
        finally:
            server.terminate()


def test_the_page_draws_with_the_network_off_once_loaded(bundle, browser: Browser, tmp_path):
    build_site([bundle], tmp_path / "deep" / "down")
    faults: list[str] = []
    with serving(tmp_path) as url:
        context = browser.new_context(viewport={"width": 1200, "height": 900})
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        context.on(
            "request",
            lambda one: None if one.url.startswith((url, f"blob:{url}")) else faults.append(one.url),
        )
        page.goto(f"{url}deep/down/")
        pictures = []
        for prompt in ("a red apple", "a castle", "a red apple"):
            page.wait_for_selector("body[data-state=ready]")
            for name, value in (
                ("prompt", prompt),
                ("width", "48"),
                ("height", "32"),
                ("steps", "2"),
                ("seed", "5"),
            ):
                page.fill(f"#{name}", value)
            page.click("#generate")
            page.wait_for_selector("body[data-state=ready]", timeout=120_000)
            assert page.locator("#error").text_content() == ""
            expect(page.get_by_role("img", name=f"Generated image: {prompt}", exact=True)).to_be_visible()
            pictures.append(page.evaluate("Array.from(document.getElementById('result').bitbrush.pixels)"))
            context.set_offline(True)
        context.close()
    assert faults == []
    assert pictures[0] == pictures[2] != pictures[1]
