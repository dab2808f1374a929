"""Helpers of training/: exact quantisers, captions, scenes, tokenizer. No data packages, no GPU."""

import random

import pytest
import torch

from training.captions import article, caption, chinese, english, plural
from training.common import learning_rate
from training.names import is_object
from training.quantize import (
    GROUP,
    PACKED,
    QuantLinear,
    affine4,
    binary,
    dequantize,
    final_text_state,
    pack_text,
    straight_through,
    ternary,
    unpack_text,
)
from training.scenes import random_scene, scene_arrays


def thing(label: str, name: str, colour: str | None = None) -> dict:
    return {
        "hex": label,
        "en": {"label": label, "extra": [], "tags": []},
        "zh": {"label": name, "extra": [], "tags": []},
        "measure": "个",
        "colour": colour,
    }


APPLE, ROCKET = thing("red apple", "苹果", "red"), thing("rocket", "火箭")


def weights(rows: int = 6, groups: int = 3) -> torch.Tensor:
    return torch.randn(rows, groups * GROUP, generator=torch.Generator().manual_seed(0)) * 0.03


@pytest.mark.parametrize("kind, allowed", [("binary", {-1.0, 1.0}), ("ternary", {-1.0, 0.0, 1.0})])
def test_groups_hold_only_scaled_codes(kind, allowed):
    weight = weights()
    codes, scale = {"binary": binary, "ternary": ternary}[kind](weight)
    assert set(codes.unique().tolist()) == allowed
    assert torch.equal(scale, scale.half().float()) and (scale > 0).all()
    values = dequantize(weight, kind).unflatten(-1, (-1, GROUP))
    for group, s in zip(values.flatten(0, 1), scale.flatten(), strict=False):
        assert set((group / s).unique().tolist()) <= allowed


def test_quantised_weights_are_fixed_points_of_the_ternary_rule():
    once = dequantize(weights(), "ternary")
    kept = once != 0
    assert torch.equal(dequantize(once, "ternary")[kept].sign(), once[kept].sign())


def test_affine4_is_a_fixed_point():
    once = dequantize(weights(), "affine4")
    codes, scale, offset = affine4(once)
    assert codes.min() == 0 and codes.max() == 15
    assert torch.equal(scale, scale.half().float()) and torch.equal(offset, offset.half().float())
    assert torch.equal(dequantize(once, "affine4"), once)


def test_straight_through_has_identity_gradient():
    weight = weights().requires_grad_()
    straight_through(weight, "binary").sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_quant_linear_computes_with_the_quantised_weight():
    layer = torch.nn.Linear(2 * GROUP, 4, bias=False)
    layer.__class__, layer.kind = QuantLinear, "ternary"
    x = torch.randn(3, 2 * GROUP)
    torch.testing.assert_close(layer(x), x @ dequantize(layer.weight.detach(), "ternary").T)


def test_packed_names():
    for name in (
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.1.ff_context.linear_in",
        "single_transformer_blocks.7.attn.to_qkv_mlp_proj",
    ):
        assert PACKED.fullmatch(name)
    for name in ("x_embedder", "proj_out", "transformer_blocks.0.attn.norm_q", "norm_out.linear"):
        assert not PACKED.fullmatch(name)


def test_text_state_rounds_matrices_only():
    state = final_text_state({"a": weights(), "norm": torch.full((4,), 1.0001)})
    assert torch.equal(state["norm"], torch.full((4,), 1.0001).half().float())
    assert torch.equal(dequantize(state["a"], "affine4"), state["a"])


def test_packed_text_keeps_the_exact_values():
    state = final_text_state({"a.weight": weights(), "norm": torch.ones(4)})
    packed = pack_text(state)
    assert packed["a.weight.codes4"].shape == (6, 3 * GROUP // 2)
    restored = unpack_text(packed)
    assert restored.keys() == state.keys() and all(torch.equal(restored[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "one, many",
    [
        ("red apple", "red apples"),
        ("strawberry", "strawberries"),
        ("bus", "buses"),
        ("glass of milk", "glasses of milk"),
        ("mouse", "mice"),
        ("jeans", "jeans"),
    ],
)
def test_plural(one, many):
    assert plural(one) == many


def test_article():
    assert article("apple") == "an apple" and article("unicorn") == "a unicorn" and article("jeans") == "jeans"


def test_captions_name_object_count_and_background():
    scene = dict(kind="many", count=3, relation=None, size=None, background="white", objects=[ROCKET])
    rng = random.Random(0)
    english_texts = [english(scene, rng).lower() for _ in range(40)]
    assert all("rockets" in text and "white" in text for text in english_texts)
    assert any("three rockets on a white background" in text for text in english_texts)
    assert all("火箭" in text and "白色" in text and text != "" for text in (chinese(scene, rng) for _ in range(20)))


def test_scenes_stay_on_the_canvas():
    rng = random.Random(1)
    scenes = [random_scene([APPLE, ROCKET], rng) for _ in range(300)]
    assert {scene["kind"] for scene in scenes} == {"one", "many", "pair"}
    for scene in scenes:
        assert caption(scene, rng)
        for _, x, y, size in scene["slots"]:
            assert x - size / 2 + 0.02 >= 0 and x + size / 2 <= 1.02 and y - size / 2 + 0.02 >= 0
    arrays = scene_arrays(scenes)
    assert arrays["index"].shape == (300, 4) and arrays["rgb"].max() <= 1


def test_left_means_smaller_x():
    rng = random.Random(2)
    lefts = [s for s in (random_scene([APPLE, ROCKET], rng) for _ in range(300)) if s["relation"] == "left"]
    assert lefts and all(s["slots"][0][1] < s["slots"][1][1] for s in lefts)


def test_learning_rate_warms_up_and_ends_at_zero():
    assert learning_rate(1.0, 0, 0.0, warmup=10) == pytest.approx(0.1)
    assert learning_rate(1.0, 50, 0.1, warmup=10) == 1.0 and learning_rate(1.0, 50, 1.0, warmup=10) == 0.0


def test_object_choice():
    assert is_object("rocket", 5) and is_object("robot", 0) and not is_object("one o’clock", 5)


def test_tokenizer_round_trip():
    from training.tokenizer import END, PAD, START, encode_batch, train_tokenizer

    tokenizer = train_tokenizer(["a red apple on a blue background", "火箭，蓝色背景"] * 4, 400, 48)
    text = "a tiny robot, 机器人 ☕ café"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert rendered == START + text + END
    row = encode_batch(tokenizer, ["a cat"], 48)[0]
    assert len(row) == 48 and row[0] == tokenizer.convert_tokens_to_ids(START)
    assert row[-1] == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids(PAD)
    assert tokenizer.model_max_length == 48
