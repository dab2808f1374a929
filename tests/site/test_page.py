"""What the page does around the runtime: form, keyboard, progress, cancel, errors, saving."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from exporter.packages import node_package


def draw(page: Page, prompt: str = "a red apple", seed: str = "7") -> None:
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_label("Seed", exact=True).fill(seed)
    page.get_by_role("button", name="Generate").click()


def until(page: Page, expression: str) -> None:
    """Wait for an expression to be true; Playwright's own way needs eval, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"expected {expression} within 10 s")


def drawn(page: Page, count: int = 1) -> None:
    until(page, f"fake.calls.filter(([name]) => name === 'generate').length === {count}")
    page.wait_for_selector("body[data-state=ready]")
    expect(page.locator("#done")).to_be_visible()


def saved(page: Page) -> tuple[str, Image.Image]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    return download.value.suggested_filename, Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))


def requests(page: Page) -> list[dict]:
    return page.evaluate("fake.calls.filter(([name]) => name === 'generate').map(([, request]) => request)")


def test_a_picture_appears_with_its_prompt_as_alternative_text(open_page):
    page = open_page()
    draw(page, "three strawberries")
    drawn(page)
    image = page.get_by_role("img", name="Generated image: three strawberries")
    expect(image).to_be_visible()
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [256, 256]
    assert "Seed 7" in page.locator("#facts").text_content()
    assert page.title().startswith("Bitbrush")


def test_nothing_of_the_model_is_fetched_before_generate(open_page, page_url):
    page = open_page()
    sizes = page.evaluate(
        "performance.getEntriesByType('resource').map(({name, decodedBodySize}) => [name, decodedBodySize])"
    )
    assert sum(size for _, size in sizes) < 200_000
    assert [name for name, _ in sizes if "/models/" in name] == [f"{page_url}models/index.json"]
    assert "14.7 MB" in page.locator("#cost").text_content()
    page.get_by_label("Model").select_option("pocket-binary")
    assert "11.3 MB" in page.locator("#cost").text_content()
    assert page.evaluate("fake.calls") == [["create"]]


def test_the_model_is_loaded_once_and_again_only_after_a_change(open_page):
    page = open_page()
    draw(page)
    drawn(page)
    assert "downloads nothing" in page.locator("#cost").text_content()
    draw(page)
    drawn(page, 2)
    page.get_by_label("Model").select_option("pocket-binary")
    draw(page)
    drawn(page, 3)
    loads = page.evaluate("fake.calls.filter(([name]) => name === 'load').map(([, path]) => path)")
    assert loads == [f"/some/where/models/pocket-{variant}/manifest.json" for variant in ("ternary", "binary")]


def test_the_keyboard_alone_generates_cancels_and_saves(open_page):
    page = open_page({"hold": "denoise"})
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("textbox", name="Prompt")).to_be_focused()
    page.keyboard.type("a rocket")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#phase")).to_have_text("Drawing: 2 of 4 steps")
    page.keyboard.press("Control+Enter")
    page.keyboard.press("Escape")
    page.wait_for_selector("body[data-state=ready]")
    assert page.locator("#live").text_content().startswith("Cancelled")
    expect(page.locator("#picture")).to_be_hidden()
    expect(page.get_by_role("textbox", name="Prompt")).to_be_focused()
    page.evaluate("fake.hold = ''")
    page.keyboard.press("Control+Enter")
    drawn(page, 2)
    page.get_by_role("button", name="Save as PNG").focus()
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.startswith("a-rocket-")


def test_cancel_leaves_the_page_ready_in_every_phase(open_page):
    page = open_page()
    for phase in ("compile", "download", "encode", "denoise", "decode"):
        page.evaluate(f"fake.hold = '{phase}'; fake.release = null")
        draw(page)
        until(page, "Boolean(fake.release)")
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_selector("body[data-state=ready]")
        for hidden in ("#progress", "#error", "#picture", "#cancel"):
            expect(page.locator(hidden)).to_be_hidden()
        expect(page.get_by_role("button", name="Generate")).to_be_focused()
        expect(page.get_by_role("textbox", name="Prompt")).to_have_value("a red apple")
    page.evaluate("fake.hold = ''")
    draw(page)
    page.wait_for_selector("#done:not([hidden])")


def test_progress_names_the_phase_in_page_title_and_live_region(open_page):
    page = open_page({"hold": "download"})
    draw(page)
    expect(page.locator("#phase")).to_have_text("Downloading the model: 2.0 of 4.0 MB")
    assert page.title() == "Downloading the model: 2.0 of 4.0 MB – Bitbrush"
    assert page.locator("#bar").evaluate("bar => bar.value") == 0.5
    assert page.locator("#live").text_content() == page.locator("#phase").text_content()
    assert page.locator("#phases li").all_text_contents()[0].startswith("Preparing the shaders")
    assert page.locator("[aria-current=step]").text_content().startswith("Downloading the model")
    page.evaluate("fake.release()")
    page.wait_for_selector("#done:not([hidden])")


ERRORS = [
    ("download", "network", "could not be downloaded"),
    ("download", "hash-mismatch", "damaged"),
    ("compile", "limit-too-low", "too large"),
    ("compile", "bad-bundle", "cannot be read"),
    ("compile", "shader-compile", "refused a shader"),
    ("encode", "bad-request", "cannot be drawn"),
    ("denoise", "device-lost", "stopped working"),
    ("denoise", "out-of-memory", "ran out of memory"),
    ("denoise", "bad-numbers", "broken"),
    ("decode", "something-else", "went wrong"),
]


def test_every_error_is_explained_and_the_form_still_works(open_page):
    page = open_page()
    alert = page.get_by_role("alert")
    clients = 1
    for phase, code, words in ERRORS:
        page.evaluate(f"fake.error = ['{phase}', '{code}']")
        draw(page)
        expect(alert).to_contain_text(words)
        assert code not in alert.locator("p").first.text_content()
        assert f"expected all well, found {code} in the test" in alert.locator("details").text_content()
        expect(page.locator("#progress")).to_be_hidden()
        clients += code in ("device-lost", "out-of-memory")
        assert page.evaluate("fake.calls.filter(([name]) => name === 'create').length") == clients
    page.evaluate("fake.error = null")
    draw(page)
    page.wait_for_selector("#done:not([hidden])")
    expect(alert).to_be_hidden()


def test_without_webgpu_the_page_says_what_is_missing_and_what_helps(open_page):
    page = open_page({"probe": "no-webgpu"})
    expect(page.get_by_role("heading", name="This browser has no WebGPU")).to_be_visible()
    assert page.locator("#notice-advice li").count() >= 2
    assert page.get_by_role("button", name="Generate").get_attribute("aria-disabled") == "true"
    page.get_by_role("textbox", name="Prompt").press("Control+Enter")
    assert requests(page) == []


LIKE_SAFARI = "AppleWebKit/605.1.15 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Update Firefox"),
        (f"Mozilla/5.0 (Macintosh) {LIKE_SAFARI} Version/17.0 Safari/605.1.15", "macOS 26"),
        (f"Mozilla/5.0 (iPhone) {LIKE_SAFARI} Version/17.0 Mobile Safari/604.1", "iOS"),
        (f"Mozilla/5.0 (X11; Linux x86_64) {LIKE_SAFARI} Chrome/100.0 Safari/537.36", "Settings"),
    ],
)
def test_advice_fits_the_browser(open_page, agent, words):
    page = open_page({"probe": "no-webgpu"}, user_agent=agent)
    expect(page.locator("#notice-advice")).to_contain_text(words)


def test_without_an_adapter_the_advice_is_about_the_graphics_card(open_page):
    page = open_page({"probe": "no-adapter"})
    expect(page.locator("#notice")).to_contain_text("found no graphics card")
    expect(page.locator("#notice-advice")).to_contain_text("graphics driver")


def test_without_javascript_the_page_explains_itself(open_page):
    page = open_page(java_script_enabled=False)
    expect(page.get_by_role("heading", name="Bitbrush needs JavaScript")).to_be_visible()


FIELDS = [
    ("width", "0", "nearest is 64"),
    ("width", "17", "nearest is 64"),
    ("height", "100000", "nearest is 512"),
    ("height", "250", "nearest is 256"),
    ("height", "", "nearest is 256"),
    ("steps", "0", "whole number from 1"),
    ("steps", "", "not empty"),
    ("seed", "-1", "not -1"),
    ("seed", "abc", "not abc"),
    ("seed", "9007199254740992", "9007199254740991"),
]


def test_a_value_that_cannot_be_drawn_is_explained_at_its_field(open_page):
    page = open_page()
    for count, (name, value, words) in enumerate(FIELDS):
        field = page.locator(f"#{name}")
        field.fill(value)
        page.get_by_role("button", name="Generate").click()
        expect(field).to_be_focused()
        assert field.get_attribute("aria-invalid") == "true"
        message = page.locator(f"#{field.get_attribute('aria-describedby')}")
        expect(message).to_contain_text(words)
        assert len(requests(page)) == count
        field.fill("64" if name in ("width", "height") else "5")
        page.get_by_role("button", name="Generate").click()
        drawn(page, count + 1)
        expect(message).to_be_hidden()


def test_an_empty_prompt_is_drawn(open_page):
    page = open_page()
    draw(page, "")
    drawn(page)
    assert requests(page)[0]["prompt"] == ""


def test_the_seed_changes_unless_it_is_kept(open_page):
    page = open_page()
    for count in (1, 2, 3):
        if count == 3:
            page.get_by_label("Keep").check()
        page.get_by_role("button", name="Generate").click()
        drawn(page, count)
        assert str(requests(page)[-1]["seed"]) == page.get_by_label("Seed", exact=True).input_value()
    first, second, third = (request["seed"] for request in requests(page))
    assert first != second == third
    page.get_by_role("button", name="Pick a random seed").click()
    assert page.get_by_label("Seed", exact=True).input_value() != str(third)


def test_presets_and_numbers_agree(open_page):
    page = open_page()
    page.get_by_role("radio", name="320 × 192").check()
    assert [page.get_by_label(name, exact=True).input_value() for name in ("Width", "Height")] == [
        "320",
        "192",
    ]
    page.get_by_role("button", name="Swap").click()
    expect(page.get_by_role("radio", name="192 × 320")).to_be_checked()
    page.get_by_label("Width", exact=True).fill("208")
    assert page.locator("#presets input:checked").count() == 0
    page.get_by_role("button", name="Generate").click()
    drawn(page)
    assert (requests(page)[0]["width"], requests(page)[0]["height"]) == (208, 320)


@pytest.mark.parametrize("prompt", ["a fox, running: fast", "火箭，蓝色背景 🚀", "line one\nline two"])
def test_the_file_holds_prompt_and_settings_unless_they_are_left_out(open_page, prompt):
    page = open_page()
    draw(page, prompt)
    drawn(page)
    name, image = saved(page)
    assert name.endswith("-7.png") and image.size == (256, 256)
    settings = "Steps: 4, Sampler: Euler, CFG scale: 1, Seed: 7, Size: 256x256, Model: pocket-ternary"
    assert image.text == {"parameters": f"{prompt}\n{settings}, Version: Bitbrush"}
    page.get_by_label("Put prompt and settings in the file").uncheck()
    _, bare = saved(page)
    assert bare.text == {}
    assert bare.tobytes() == image.tobytes()


def test_latents_are_kept_only_when_asked_for(open_page):
    for query, kept in (("", False), ("?latents=1", True)):
        page = open_page(query=query)
        draw(page)
        drawn(page)
        facts = page.evaluate("(({pixels, latents, ...facts}) => facts)(document.getElementById('result').bitbrush)")
        assert facts["adapter"] == "test stripes" and facts["seconds"] > 0
        assert set(facts["timings"]) == {"compile", "download", "encode", "denoise", "decode"}
        assert page.evaluate("Boolean(document.getElementById('result').bitbrush.latents)") == kept


def test_the_kernels_chosen_are_shown_and_can_be_forced(open_page):
    for query, name in (("", "striped"), ("?variant=f32_staged", "f32_staged")):
        page = open_page(query=query)
        draw(page)
        drawn(page)
        assert page.locator("#kernels").text_content() == f"Kernels chosen on it: matmul: {name}"
        assert page.evaluate("document.getElementById('result').bitbrush.kernels") == f"matmul: {name}"


@pytest.mark.parametrize("width", [320, 360, 1280])
def test_nothing_is_cut_off_at_any_width(open_page, width):
    page = open_page(viewport={"width": width, "height": 700})
    draw(page, "word" * 40)
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.locator("button:visible, input:visible, select:visible, textarea:visible").evaluate_all(
        "all => all.filter(one => !one.closest('.toggle, .preset')).map(one => one.getBoundingClientRect().height)"
    )
    assert min(boxes) >= 24


FOCUSED = """(() => {
    const one = document.activeElement;
    const style = getComputedStyle(one.closest(".preset")?.querySelector("span") ?? one);
    return [one.id || one.value, style.outlineStyle, style.outlineWidth];
})()"""


def test_focus_is_visible_on_every_control(open_page):
    page = open_page()
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUSED)
        if found[0]:
            assert found[1:] == ["solid", "3px"], found
            seen.add(found[0])
    assert {
        "prompt",
        "model",
        "256x256",
        "width",
        "height",
        "steps",
        "seed",
        "dice",
        "lock",
        "generate",
    } <= seen


def test_reduced_motion_is_honoured(open_page):
    page = open_page({"hold": "denoise"}, reduced_motion="reduce")
    draw(page)
    durations = "[...document.querySelectorAll('*')].map(one => getComputedStyle(one).transitionDuration)"
    assert set(page.evaluate(durations)) == {"0s"}


@pytest.mark.parametrize(
    ("fake", "state"),
    [
        ({}, "#placeholder:not([hidden])"),
        ({"hold": "denoise"}, "#progress:not([hidden])"),
        ({}, "#done:not([hidden])"),
        ({"error": ["denoise", "out-of-memory"]}, "#error:not([hidden])"),
        ({"probe": "no-webgpu"}, "#notice:not([hidden])"),
    ],
    ids=["idle", "running", "done", "error", "unsupported"],
)
def test_axe_finds_no_fault_in_either_theme(open_page, fake, state):
    page = open_page(fake)
    if "placeholder" not in state and "notice" not in state:
        draw(page)
    page.wait_for_selector(state)
    page.evaluate((node_package("axe-core") / "axe.min.js").read_text("utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found = page.evaluate(
            "axe.run().then(({violations}) => violations.map(({id, nodes}) => [id, nodes.map(({html}) => html)]))"
        )
        assert found == []
