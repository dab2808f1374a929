"""Rotary tables and the timestep sinusoid equal those of diffusers and transformers."""

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed
from playwright.sync_api import Page
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from tests.runtime.conftest import array

TABLES = """async ([name, args]) => {
  const { cos, sin } = (await load("rotary"))[name](...args);
  return [toBase64(cos), toBase64(sin)];
}"""


@pytest.mark.parametrize(
    ("axes", "theta", "text_tokens", "rows", "columns"),
    [([32, 32, 32, 32], 2000, 512, 5, 8), ([16, 16, 16, 16], 2000, 40, 16, 16), ([8, 16, 24, 16], 10000, 1, 3, 1)],
)
def test_denoiser_table_equals_diffusers(
    calculator: Page, axes: list[int], theta: int, text_tokens: int, rows: int, columns: int
) -> None:
    text = torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), torch.arange(text_tokens))
    image = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns), torch.arange(1))
    expected = Flux2PosEmbed(theta=theta, axes_dim=axes)(torch.cat([text, image]))
    arguments = [{"axes": axes, "theta": theta}, text_tokens, rows, columns]
    found = calculator.evaluate(TABLES, ["denoiserRotary", arguments])
    for table, reference in zip(found, expected, strict=True):
        halves = reference.numpy()[:, ::2]  # diffusers repeats each value for the pair's two channels
        np.testing.assert_array_max_ulp(array(table).reshape(halves.shape), halves, maxulp=1)


@pytest.mark.parametrize(("head_size", "theta", "tokens"), [(128, 1_000_000, 512), (64, 10_000, 40), (32, 5e6, 1)])
def test_encoder_table_equals_transformers(calculator: Page, head_size: int, theta: float, tokens: int) -> None:
    config = Qwen3Config(head_dim=head_size, rope_parameters={"rope_type": "default", "rope_theta": theta})
    expected = Qwen3RotaryEmbedding(config)(torch.zeros(1), torch.arange(tokens)[None])
    found = calculator.evaluate(TABLES, ["encoderRotary", [{"head_size": head_size, "theta": theta}, tokens]])
    for table, reference in zip(found, expected, strict=True):
        halves = reference[0, :, : head_size // 2].numpy()
        np.testing.assert_allclose(array(table).reshape(halves.shape), halves, rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("timestep", [1000.0, 954.69171, 717.49658, 33.5, 0.5])
def test_timestep_features_equal_diffusers(calculator: Page, timestep: float) -> None:
    scaled = torch.tensor([timestep], dtype=torch.float32) / 1000 * 1000
    expected = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=0)(scaled)[0].numpy()
    script = "async (t) => toBase64((await load('rotary')).timestepFeatures(Math.fround(t), 256))"
    # torch's float32 exp may be one unit (6e-8) off, which an angle of up to 1000 multiplies.
    np.testing.assert_allclose(array(calculator.evaluate(script, timestep)), expected, rtol=0, atol=7e-5)


def test_timestep_features_equal_the_known_values(calculator: Page) -> None:
    script = "async () => toBase64((await load('rotary')).timestepFeatures(1000, 256))"
    found = array(calculator.evaluate(script))[[0, 1, 2, 127, 128, 129, 130, 255]]
    known = [0.56237906, 0.78962666, 0.43992788, 0.99423164, 0.82687956, 0.61358762, -0.89803308, 0.10725406]
    np.testing.assert_allclose(found, known, rtol=0, atol=3e-7)
