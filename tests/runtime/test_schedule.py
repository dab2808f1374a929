"""Sigmas and timesteps equal those that Flux2KleinPipeline gets from its scheduler."""

from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from playwright.sync_api import Page

from exporter.configs import picture_sizes
from exporter.schedule import step_sigmas, timestep_features
from tests.runtime.conftest import array

KLEIN = {
    "base_image_seq_len": 256, "base_shift": 0.5, "invert_sigmas": False, "max_image_seq_len": 4096, "max_shift": 1.15,
    "num_train_timesteps": 1000, "shift": 3.0, "shift_terminal": None, "stochastic_sampling": False,
    "time_shift_type": "exponential", "use_beta_sigmas": False, "use_dynamic_shifting": True,
    "use_exponential_sigmas": False, "use_karras_sigmas": False,
}  # fmt: skip
CONFIGS = {
    "klein": KLEIN,
    "linear": {**KLEIN, "time_shift_type": "linear"},
    "static": {**KLEIN, "use_dynamic_shifting": False},
    "no shift": {"use_dynamic_shifting": False},
    "terminal": {**KLEIN, "shift_terminal": 0.02},
    "inverted": {**KLEIN, "invert_sigmas": True},
    "fewer training steps": {**KLEIN, "num_train_timesteps": 500},
}
STEPS = [1, 2, 3, 4, 5, 8, 20, 50]
TOKENS = [1, 64, 256, 1014, 4096, 4300, 4301, 6400]


def reference(config: dict[str, Any], steps: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    sigmas = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=sigmas, mu=compute_empirical_mu(image_seq_len=tokens, num_steps=steps))
    return scheduler.sigmas.numpy(), scheduler.timesteps.numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_schedule_equals_diffusers(calculator: Page, name: str) -> None:
    script = """async ([config, steps, tokens]) => {
      const { makeSchedule } = await load("schedule");
      return steps.map((n) => tokens.map((t) => Object.values(makeSchedule(config, n, t)).map(toBase64)));
    }"""
    table = calculator.evaluate(script, [CONFIGS[name], STEPS, TOKENS])
    for steps, row in zip(STEPS, table, strict=True):
        for tokens, (sigmas, timesteps) in zip(TOKENS, row, strict=True):
            if steps == 1 and name == "terminal":
                continue  # diffusers divides 0 by 0 there
            expected_sigmas, expected_timesteps = reference(CONFIGS[name], steps, tokens)
            np.testing.assert_array_max_ulp(array(sigmas), expected_sigmas, maxulp=1)
            np.testing.assert_array_max_ulp(array(timesteps), expected_timesteps, maxulp=1)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "inverted"])  # export refuses that one
def test_export_knows_the_sigmas_to_the_last_bit(calculator: Page, name: str) -> None:
    script = """async ([config, steps, tokens]) => {
      const { makeSchedule } = await load("schedule");
      const { timestepFeatures } = await load("rotary");
      return steps.map((n) => tokens.map((t) => {
        const { sigmas, timesteps } = makeSchedule(config, n, t);
        return [toBase64(sigmas), toBase64(timestepFeatures(timesteps[n - 1], 256))];
      }));
    }"""
    config, steps = CONFIGS[name], [count for count in STEPS if count > 1]
    sizes = picture_sizes({"vae": {"block_out_channels": [1] * 4}})["presets"]
    tokens = sorted({*TOKENS, *(width // 16 * (height // 16) for width, height in sizes)})
    for count, row in zip(steps, calculator.evaluate(script, [config, steps, tokens]), strict=True):
        for size, (sigmas, features) in zip(tokens, row, strict=True):
            expected = step_sigmas(config, count, size)
            assert np.array_equal(array(sigmas)[:-1], expected), (count, size)
            difference = array(features) - timestep_features(float(expected[-1]), config, 256)[0]
            assert np.abs(difference).max() <= 2**-23  # two libraries' cosines


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("stochastic_sampling", True),
        ("time_shift_type", "cubic"),
        ("shift", "three"),
    ],
)
def test_settings_of_other_samplers_are_refused(calculator: Page, setting: str, value: Any) -> None:
    script = """async (config) => {
      const { checkScheduler } = await load("schedule");
      return failure(() => checkScheduler(config));
    }"""
    error = calculator.evaluate(script, {**KLEIN, setting: value})
    assert error["code"] == "bad-bundle"
    assert setting in error["message"]
