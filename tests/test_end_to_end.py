"""The browser's picture equals diffusers': text features, latents after every step, pixels.

Each pipeline's site is built as for a visitor and opened in headless Chrome; the page's own runtime
draws. The reference is `Flux2KleinPipeline` with the bundle's de-quantized weights.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from exporter.website import build_site
from tests.pipelines import CONFIGURATIONS, WEIGHTS
from tests.reference import diffusers_picture, psnr, relative_error

DRAW = """async ([manifest, request]) => {
    const { createClient } = await import(new URL("js/runtime/client.js", location.href).href);
    const client = createClient();
    try {
        await client.load(new URL(manifest, location.href).href);
        const { pixels, latents, features } = await client.generate(request, { latents: true });
        const text = (array) => {
            const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
            let packed = "";
            for (let at = 0; at < bytes.length; at += 32768) {
                packed += String.fromCharCode(...bytes.subarray(at, at + 32768));
            }
            return btoa(packed);
        };
        return [text(features), text(latents), text(pixels)];
    } finally {
        client.dispose();
    }
}"""


@pytest.fixture(scope="module")
def page_for(browser, local_server, tmp_path_factory) -> Callable[[Path], tuple[Page, str]]:
    def open_page(bundle: Path) -> tuple[Page, str]:
        site = tmp_path_factory.mktemp("site") / "dist"
        (entry,) = build_site([bundle], site)
        page = browser.new_page()
        page.goto(local_server(site) + "/index.html")
        return page, f"models/{entry['manifest']}"

    return open_page


def draw(page: Page, manifest: str, request: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    features, latents, pixels = (base64.b64decode(part) for part in page.evaluate(DRAW, [manifest, request]))
    picture = np.frombuffer(pixels, np.uint8).reshape(request["height"], request["width"], 4)
    return np.frombuffer(features, "<f4"), np.frombuffer(latents, "<f4").reshape(request["steps"], -1), picture


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_browsers_picture_equals_diffusers(name, weights, exported, page_for):
    configuration = CONFIGURATIONS[name]
    bundle: Path = exported(name, weights)
    width, height = configuration.size
    request = {
        "prompt": configuration.prompt,
        "width": width,
        "height": height,
        "steps": configuration.steps,
        "seed": configuration.seed,
    }
    expected = diffusers_picture(
        bundle, configuration.prompt, configuration.size, configuration.steps, configuration.seed
    )
    page, manifest = page_for(bundle)
    features, latents, picture = draw(page, manifest, request)
    page.close()

    assert relative_error(features, expected.features) < 2e-3
    errors = [relative_error(found, wanted) for found, wanted in zip(latents, expected.latents, strict=True)]
    assert max(errors) < 2e-3, errors
    assert psnr(picture[..., :3], expected.image) >= 40
    assert (picture[..., 3] == 255).all()
    assert np.std(expected.image) > 5, "a flat picture proves nothing"
