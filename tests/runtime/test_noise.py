"""The browser's noise equals torch's CPU generator."""

import numpy as np
import pytest
import torch
from playwright.sync_api import Page

from tests.runtime.conftest import array

SEEDS = [0, 1, 7, 42, 9909, 123456789, 2**31 - 1, 2**32 - 1, 2**32 + 5, 2**53 - 1]
COUNTS = [1, 2, 7, 15, 16, 17, 31, 64, 624, 1000, 2049]


def torch_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()


def browser_noise(calculator: Page, seed: int, count: int) -> np.ndarray:
    script = "async ([seed, count]) => toBase64((await load('noise')).randn(BigInt(seed), count))"
    return array(calculator.evaluate(script, [str(seed), count]))


def assert_equal_noise(found: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit where torch uses its vector kernels; elsewhere as near as torch is to itself."""
    assert found.shape == expected.shape
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or expected.size < 16:
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_equals_torch_for_every_length(calculator: Page, seed: int) -> None:
    for count in COUNTS:
        assert_equal_noise(browser_noise(calculator, seed, count), torch_noise(seed, (count,)))


def test_a_large_picture_s_noise_equals_torch(calculator: Page) -> None:
    count = 128 * 64 * 64
    assert_equal_noise(browser_noise(calculator, 9909, count), torch_noise(9909, (count,)))


@pytest.mark.parametrize(("channels", "height", "width"), [(128, 4, 6), (64, 5, 3), (3, 1, 5), (16, 16, 16)])
def test_latents_are_packed_as_diffusers_packs_them(calculator: Page, channels: int, height: int, width: int) -> None:
    script = "async ([seed, c, n]) => toBase64((await load('noise')).initialLatents(seed, c, n))"
    found = array(calculator.evaluate(script, [11, channels, height * width]))
    drawn = torch_noise(11, (1, channels, height, width))
    expected = drawn.reshape(channels, height * width).T
    assert_equal_noise(found.reshape(expected.shape), expected)
