"""The page says how much GPU memory a picture needs before anything is downloaded."""

from __future__ import annotations

import re

import pytest

from tests.site.conftest import MEMORY


def cost(page) -> str:
    return page.locator("#cost").text_content().replace("\u00a0", " ")


def test_memory_is_told_for_the_chosen_size_before_the_download(open_page):
    page = open_page()
    assert "14.7 MB" in cost(page) and "about 120 MB of GPU memory at 256 × 256" in cost(page)
    page.get_by_label("320 × 192").check()
    assert "about 110 MB of GPU memory at 320 × 192" in cost(page)
    page.get_by_label("Swap width and height").click()
    assert "at 192 × 320" in cost(page)
    assert page.evaluate("fake.calls") == [["create"]]


def test_memory_of_other_sizes_is_estimated_from_the_listed_ones(open_page):
    page = open_page()
    page.fill("#width", "512")
    page.fill("#height", "512")
    # 6 MB for 4,096 pixels more, so 288 MB for 196,608 more than 256 x 256.
    assert "about 410 MB of GPU memory at 512 × 512" in cost(page)
    page.fill("#width", "")
    assert "GPU memory" not in cost(page) and "14.7 MB" in cost(page)


def test_the_runtimes_own_count_of_a_size_is_not_estimated(open_page):
    page = open_page()
    script = """async ([memory, sizes]) => {
      const { gpuBytes } = await import(new URL("js/studio/memory.js", location.href).href);
      return sizes.map(([width, height]) => gpuBytes(memory, width, height));
    }"""
    sizes = [[256, 256], [320, 192]]
    assert page.evaluate(script, [MEMORY, sizes]) == [120_000_000, 114_000_000]
    one = {"64x64": {"encode": 5, "denoise": 7, "decode": 6}}
    assert page.evaluate(script, [one, [[64, 64], [128, 64]]]) == [7, 7]


@pytest.mark.parametrize(("offers", "bytes_"), [(["dots", "more"], 120), (["halves"], 120), (["dots", "halves"], 140)])
def test_scratch_counts_where_the_device_may_convert_operands(open_page, offers, bytes_):
    # Denoising takes 80 MB, with scratch for dots 110, for halves 140; decoding 120.
    page = open_page({"offers": offers})
    assert f"about {bytes_} MB of GPU memory at 256 × 256" in cost(page)


@pytest.mark.parametrize(("query", "bytes_"), [("?budget=1.5", 1.5e9), ("", None), ("?budget=lots", None)])
def test_a_budget_in_the_address_reaches_the_runtime(open_page, query, bytes_):
    page = open_page(query=query)
    page.fill("#prompt", "a cat")
    page.click("#generate")
    page.wait_for_selector("#done:not([hidden])")
    assert page.evaluate("fake.memoryBudget ?? null") == bytes_
    assert re.search(r"downloads nothing\. It needs about 120 MB of GPU memory", cost(page))
