"""Roundings of the page's fast matrix products and attention, as training/eval/rounding.py draws with them."""

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

ROWS = {"f16": "f16", "int8_groups": "int8", "int8_rows": "int8_rows"}  # names of the kernels' conversions


def kept_by_the_kernels(rows: str, x: np.ndarray) -> np.ndarray:
    """The values that are left of rows of x after the kernels' conversion."""
    words = converted(ROWS[rows], x)
    if rows == "f16":
        return words[""].view(np.float16).astype(np.float32).reshape(x.shape)
    scales = words["_scales"].reshape(len(x), -1, 2)[..., :1]
    return (words[""].view(np.int8).reshape(*scales.shape[:2], -1) * scales).reshape(x.shape)


@pytest.mark.parametrize("rows", ROWS)
def test_rows_are_rounded_as_the_kernels_convert_them(rows):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((5, 384)) * rng.uniform(1e-3, 1e4, (5, 1))).astype(np.float32)
    x[3] = 0
    made = rounding.rounded_rows(torch.from_numpy(x), rows).numpy()
    expected = kept_by_the_kernels(rows, x)
    assert np.abs(made - expected).max() <= 2e-7 * np.abs(x).max() and (made[3] == 0).all()
    error = np.linalg.norm(made - x) / np.linalg.norm(x)
    assert {"f16": 1e-4, "int8_groups": 3e-3, "int8_rows": 4e-3}[rows] < error < {"f16": 5e-4}.get(rows, 2e-2)


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
    for kind, (rows, _) in rounding.KINDS.items():
        with rounding.rounded_as(transformer, kind):
            weight = linear.weight if rows != "int8_rows" else rounding.eight_bit_steps(before[f"{name}.weight"])
            kept = rounding.rounded_rows(x, rows) if rows else x
            assert torch.equal(linear(x), torch.nn.functional.linear(kept, weight))
            changed = {n for n, t in transformer.state_dict().items() if not torch.equal(t, before[n])}
        assert changed == ({f"{one}.weight" for one in packed} if rows == "int8_rows" else set())
        assert torch.equal(linear(x), exact)
    assert all(torch.equal(t, before[n]) for n, t in transformer.state_dict().items())


def attention_of_integers(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """What the kernel int8 of attention makes of a head [tokens, channels], query by query and tile by tile."""

    def codes(values: np.ndarray) -> tuple[np.ndarray, float]:
        step = np.abs(values).max() / 127
        return np.rint(values / step).astype(np.int64) if step else np.zeros(values.shape, np.int64), step

    y = np.zeros(q.shape)
    keys = [codes(row) for row in k.astype(np.float64)]
    for query, row in enumerate(q.astype(np.float64)):
        row, row_step = codes(row)
        scores = np.array([row @ key * row_step * step / np.sqrt(q.shape[1]) for key, step in keys])
        total = 0
        for first in range(0, len(k), 64):
            tile = scores[first : first + 64]
            exact = 255 * np.exp(tile - tile.max())
            weights = np.rint(exact).astype(np.int64)
            share = np.exp(tile.max() - scores.max()) / 255
            total += share * exact.sum()
            for channel, values in enumerate(v[first : first + 64].astype(np.float64).T):
                values, step = codes(values)
                y[query, channel] += share * (weights @ values) * step
        y[query] /= total
    return y


@pytest.mark.parametrize("tokens", [(5, 150), (3, 64), (4, 9)])
@pytest.mark.parametrize(("magnitude", "error"), [(0.3, 1e-2), (3.0, 3e-2)])  # codes of q shift scores by parts of them
def test_attention_is_rounded_tile_by_tile(tokens, magnitude, error):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((count, 2, 32)).astype(np.float32) for count in (tokens[0], tokens[1], tokens[1]))
    q, v = q * np.float32(magnitude), v * np.exp(rng.standard_normal(32)).astype(np.float32)
    q[1], v[:, :, 3] = 0, 0
    operands = [torch.from_numpy(values)[None] for values in (q, k, v)]
    made = rounding.eight_bit_attention(*operands)
    exact = torch.nn.functional.scaled_dot_product_attention(*(one.transpose(1, 2) for one in operands))
    assert made.shape == (1, tokens[0], 2, 32)
    for head in range(2):
        expected = attention_of_integers(q[:, head], k[:, head], v[:, head])
        assert np.abs(made[0, :, head].numpy() - expected).max() < 1e-5 * np.abs(v).max()
    assert 1e-3 < (made - exact.transpose(1, 2)).norm() / exact.norm() < error
    with pytest.raises(ValueError, match="no mask"):
        rounding.eight_bit_attention(*operands, attn_mask=torch.ones(tokens))


def test_all_attention_of_the_transformer_alone_is_rounded_and_only_inside(monkeypatch):
    from training import flow, model

    torch.manual_seed(0)
    transformer, vae = model.build_transformer(tiny=True), model.build_vae(tiny=True).eval()
    velocity, encoder = flow.Velocity(transformer, compile=False), model.build_text_encoder(tiny=True).eval()
    x, level, text, ids = torch.randn(1, 64, 8, 8), torch.ones(1), torch.randn(1, 48, 3 * 64), torch.arange(48)[None]
    heads: list[tuple[int, ...]] = []
    attention = rounding.eight_bit_attention

    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: object) -> torch.Tensor:
        heads.append(tuple(key.shape))
        return attention(query, key, value, **given)

    def computed() -> list[torch.Tensor]:
        return [velocity(x, level, text), model.encode_prompt(encoder, ids, 0), vae.decode(x[:, :16]).sample]

    monkeypatch.setattr(rounding, "eight_bit_attention", counted)
    with torch.no_grad():
        exact = computed()
        with rounding.rounded_as(transformer, "attention_int8"):
            made = computed()
        assert heads == [(1, 48 + 64, 1, 128)] * 2  # a double block, a single block
        assert 1e-5 < (made[0] - exact[0]).norm() / exact[0].norm() < 1e-3  # random weights look at all keys alike
        assert all(torch.equal(one, other) for one, other in zip(made[1:], exact[1:], strict=True))
        assert torch.equal(velocity(x, level, text), exact[0]) and len(heads) == 2


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
    rounding.main([*arguments, *small, "--kinds", "f16", "all_int8"])
    made = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert [len(images) for images in seen] == [7, 7, 7, 5, 5, 5] and seen[0].shape == (7, 3, 32, 48)
    assert {kind: len(of) for kind, of in made["pictures"].items()} == {"f32": 12, "f16": 12, "all_int8": 12}
    kinds = made["kinds"]
    assert kinds["f32"]["table"]["overall"]["mean"] == 0.5 and kinds["all_int8"]["against"]["share"]["mean"] == 1
    assert (
        20 < kinds["all_int8"]["psnr"]["lowest"] <= kinds["all_int8"]["psnr"]["median"] < kinds["f16"]["psnr"]["median"]
    )
    assert 0 < kinds["f16"]["latents"]["median"] < kinds["all_int8"]["latents"]["median"] < 0.1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| f32 | 50.0 %") and lines[4].startswith("| all_int8 | 50.0 %") and " dB (" in lines[4]
    assert len({line.count("|") for line in lines}) == 1
