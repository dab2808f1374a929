"""PNG files: other readers see the pixels and the text, and the runtime reads its text back."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import Page

TEXTS = {
    "parameters": "a red apple\nSteps: 4, Sampler: Euler, CFG scale: 1, Seed: 9909, Size: 5x3",
    "umlaut": "Äpfel, größer: «naïve»",
    "bitbrush": '{"prompt": "火箭，蓝色背景 🚀"}',
    "control": "tab\there",
    "empty": "",
}


def encoded(page: Page, pixels: np.ndarray, text: dict[str, str]) -> bytes:
    script = """async ([data, width, height, text]) => {
      const { encodePng } = await load("png");
      return toBase64(await encodePng({ pixels: new Uint8ClampedArray(fromBase64(data).buffer), width, height, text }));
    }"""
    height, width, _ = pixels.shape
    return base64.b64decode(page.evaluate(script, [base64.b64encode(pixels.tobytes()).decode(), width, height, text]))


def read_text(page: Page, file: bytes) -> dict[str, str]:
    script = "async (data) => (await load('png')).readPngText(fromBase64(data))"
    return page.evaluate(script, base64.b64encode(file).decode())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (64, 48)])
@pytest.mark.parametrize("opaque", [True, False])
def test_pillow_reads_the_same_pixels(calculator: Page, height: int, width: int, opaque: bool) -> None:
    chance = np.random.default_rng(3)
    pixels = chance.integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels[: height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]  # smooth: other filters win
    pixels[..., 3] = 255 if opaque else pixels[..., 3] // 2
    image = Image.open(io.BytesIO(encoded(calculator, pixels, {})))
    image.load()
    assert image.mode == ("RGB" if opaque else "RGBA")
    assert image.size == (width, height)
    assert image.info == {}
    np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), pixels)


def test_pillow_and_the_runtime_read_the_text(calculator: Page) -> None:
    file = encoded(calculator, np.full((3, 5, 4), 255, np.uint8), TEXTS)
    image = Image.open(io.BytesIO(file))
    image.load()
    assert image.text == TEXTS
    assert read_text(calculator, file) == TEXTS
    assert file.count(b"tEXt") == 3 and file.count(b"iTXt") == 2


def test_compressed_text_of_other_programs_is_read(calculator: Page) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "größer", zip=True)
    info.add_itxt("other", "火箭", lang="zh", tkey="其他", zip=True)
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "png", pnginfo=info)
    assert read_text(calculator, file.getvalue()) == {"parameters": "größer", "other": "火箭"}


def test_broken_files_give_what_can_be_read(calculator: Page) -> None:
    file = encoded(calculator, np.full((3, 5, 4), 255, np.uint8), TEXTS)
    assert read_text(calculator, b"") == {}
    assert read_text(calculator, b"GIF89a" + file) == {}
    cut = read_text(calculator, file[: file.index(b"iTXt") + 6])
    assert cut == {name: TEXTS[name] for name in ("parameters", "umlaut")}


def test_pixels_of_another_size_are_refused(calculator: Page) -> None:
    script = """async () => {
      const { encodePng } = await load("png");
      return failure(() => encodePng({ pixels: new Uint8ClampedArray(8), width: 2, height: 2 }));
    }"""
    assert calculator.evaluate(script)["code"] == "bad-request"
