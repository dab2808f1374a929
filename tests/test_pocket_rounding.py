"""Roundings of the page's fast matrix products, as training/eval/rounding.py draws with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_pocket_eval import THINGS
from tests.tiny_pocket import save_tiny_pocket
from training.eval import prompts, rounding, score
from training.quantize import dequantize, packed_linears, ternary
from webgpu_kernels.operands import converted


def kept_by_the_kernels(kind: str, x: np.ndarray) -> np.ndarray:
    """The values that are left of rows of x after the kernels' conversion."""
    words = converted(kind, x)
    if kind == "f16":
        return words[""].view(np.float16).astype(np.float32).reshape(x.shape)
    scales = words["_scales"].reshape(len(x), -1, 2)[..., :1]
    return (words[""].view(np.int8).reshape(*scales.shape[:2], -1) * scales).reshape(x.shape)


@pytest.mark.parametrize("kind", rounding.KINDS)
def test_rows_are_rounded_as_the_kernels_convert_them(kind):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((5, 384)) * rng.uniform(1e-3, 1e4, (5, 1))).astype(np.float32)
    x[3] = 0
    made = rounding.rounded_rows(torch.from_numpy(x), kind).numpy()
    expected = kept_by_the_kernels(kind, x)
    assert np.abs(made - expected).max() <= 2e-7 * np.abs(x).max() and (made[3] == 0).all()
    error = np.linalg.norm(made - x) / np.linalg.norm(x)
    assert {"f16": 1e-4, "int8": 3e-3, "int8_rows": 4e-3}[kind] < error < {"f16": 5e-4}.get(kind, 2e-2)


def test_weights_become_eight_bits_of_their_rows_greatest_scale():
    torch.manual_seed(0)
    weight = torch.randn(6, 384) * torch.rand(6, 3, 1).expand(-1, -1, 128).flatten(1)
    codes, scales = ternary(weight)
    step = scales.amax(1, keepdim=True) / 127
    expected = (codes * (scales / step).round() * step).flatten(1)
    assert torch.allclose(rounding.eight_bit_steps(dequantize(weight, "ternary")), expected, rtol=1e-6, atol=0)
    assert not torch.allclose(expected, dequantize(weight, "ternary"), rtol=1e-4)


def test_packed_products_alone_are_rounded_and_only_inside():
    from training import model

    transformer = model.build_transformer(tiny=True)
    packed = packed_linears(transformer)
    name, linear = next(iter(packed.items()))
    x, before = torch.randn(3, linear.in_features), {n: t.clone() for n, t in transformer.state_dict().items()}
    exact = linear(x)
    for kind in rounding.KINDS:
        with rounding.products_as(transformer, kind):
            weight = linear.weight if kind != "int8_rows" else rounding.eight_bit_steps(before[f"{name}.weight"])
            assert torch.equal(linear(x), torch.nn.functional.linear(rounding.rounded_rows(x, kind), weight))
            changed = {n for n, t in transformer.state_dict().items() if not torch.equal(t, before[n])}
        assert changed == ({f"{one}.weight" for one in packed} if kind == "int8_rows" else set())
        assert torch.equal(linear(x), exact)
    with rounding.products_as(transformer, None):
        assert torch.equal(linear(x), exact)
    assert all(torch.equal(t, before[n]) for n, t in transformer.state_dict().items())


def test_differences_are_told_as_others_tell_them():
    image = torch.zeros(2, 3, 4, 4)
    other = image.clone()
    other[1] += 2 * 10 / 255  # ten steps of 255 everywhere
    assert rounding.psnr(image, other) == [float("inf"), pytest.approx(20 * np.log10(25.5))]
    assert rounding.relative_error(torch.full((1, 2, 2), 1.1), torch.ones(1, 2, 2)) == [pytest.approx(0.1)]


def test_the_command_compares_every_kind_with_float32(tmp_path: Path, monkeypatch, capsys):
    save_tiny_pocket(tmp_path / "pipeline")
    asked = prompts.build(THINGS, 2)
    seen: list[torch.Tensor] = []

    def judge(some: score.Asked, images: torch.Tensor) -> list[dict]:
        seen.append(images)
        facts = [(prompt.id, prompt.kind, prompt.language, prompt.group, seed) for prompt, seed in some]
        keys = ("id", "kind", "language", "group", "seed")
        return [dict(zip(keys, one, strict=True)) | {"passed": one[4] == 0} for one in facts]

    monkeypatch.setattr(rounding, "load_judge", lambda args: (judge, asked, {"clean": 1}))
    arguments = ["--data", "d", "--run", "r", "--pipeline", str(tmp_path / "pipeline")]
    arguments += ["-o", str(tmp_path / "out.json")]
    small = ["--size", "48", "32", "--per-class", "1", "--seeds", "0", "1", "--device", "cpu", "--batch", "7"]
    rounding.main([*arguments, *small, "--kinds", "f16", "int8"])
    made = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert [len(images) for images in seen] == [7, 7, 7, 5, 5, 5] and seen[0].shape == (7, 3, 32, 48)
    assert {kind: len(of) for kind, of in made["pictures"].items()} == {"f32": 12, "f16": 12, "int8": 12}
    kinds = made["kinds"]
    assert kinds["f32"]["table"]["overall"]["mean"] == 0.5 and kinds["int8"]["against"]["share"]["mean"] == 1
    assert 20 < kinds["int8"]["psnr"]["lowest"] <= kinds["int8"]["psnr"]["median"] < kinds["f16"]["psnr"]["median"]
    assert 0 < kinds["f16"]["latents"]["median"] < kinds["int8"]["latents"]["median"] < 0.1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| f32 | 50.0 %") and lines[4].startswith("| int8 | 50.0 %") and " dB (" in lines[4]
    assert len({line.count("|") for line in lines}) == 1
