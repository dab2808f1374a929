"""Synthetic checkpoints: exact shapes, the same weights in any order, activations of the real network's size."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest

import build
from exporter import packing
from exporter.bundle import Bundle
from exporter.klein import KLEIN_4B
from exporter.synthetic import MODELS, open_synthetic
from tests.reference import diffusers_picture

BLOCK = "single_transformer_blocks.1.attn.to_out.weight"
UP = "layers.0.mlp.up_proj.weight"
LAYERS = (1, 2, 4)


@pytest.fixture(scope="module")
def small():
    """klein's configs with few and narrow layers."""
    configs = copy.deepcopy(KLEIN_4B)
    hidden = 128
    configs["transformer"].update(
        num_attention_heads=2, num_layers=1, num_single_layers=2, joint_attention_dim=len(LAYERS) * hidden
    )
    configs["text_encoder"].update(
        hidden_size=hidden,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=384,
        num_hidden_layers=5,
        vocab_size=5632,
        bos_token_id=None,
        eos_token_id=None,
    )
    configs["vae"].update(block_out_channels=[32, 32, 64, 64], layers_per_block=1)
    return configs


@pytest.fixture(scope="module")
def bundle(small, tmp_path_factory):
    """What the command line makes of `small`."""
    out = tmp_path_factory.mktemp("synthetic") / "small-ternary"
    layers = ",".join(map(str, LAYERS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "klein-4b", small)
        options = ["--weights", "ternary", "--encoder-layers", layers, "-o", str(out)]
        assert build.main(["export", "--synthetic", "klein-4b", *options]) == 0
    return out


def everything(opened):
    """(component, name) of every tensor."""
    return [(component, name) for component in opened.folders for name in opened.names(component)]


def digest(opened, component, name):
    given = opened.given(component, name)
    parts = {"": opened.tensor(component, name)} if given is None else given.parts
    return {suffix: part.tobytes() for suffix, part in parts.items()}


def test_klein_has_its_tensors_and_parameters():
    with open_synthetic("klein-4b", weights="binary") as opened:
        found = {
            component: (len(opened.names(component)), sum(map(math.prod, shapes)))
            for component in opened.folders
            for shapes in [[opened.shape(component, name) for name in opened.names(component)]]
        }
        assert opened.shape("text_encoder", "model.embed_tokens.weight") == (151936, 2560)
        low_bit = [name for name in opened.names("transformer") if "blocks." in name and ".norm" not in name]
        assert len(low_bit) == 100
        assert sum(math.prod(opened.shape("transformer", name)) for name in low_bit) == 3_680_501_760
    assert found == {
        "transformer": (169, 3_875_544_576),
        "text_encoder": (398, 4_022_468_096),
        "vae": (251, 84_046_372),
    }


def test_weights_depend_on_seed_and_name_and_on_nothing_else(small):
    with open_synthetic("small", weights="binary", configs=small) as opened:
        first = {key: digest(opened, *key) for key in everything(opened)}
    with open_synthetic("small", weights="binary", configs=small) as opened:
        assert {key: digest(opened, *key) for key in reversed(everything(opened))} == first
    with open_synthetic("small", weights="binary", seed=1, configs=small) as opened:
        other = {key: digest(opened, *key) for key in everything(opened)}
    random = {key: parts for key, parts in first.items() if "running" not in key[1] and "num_batches" not in key[1]}
    contents = [content for key, parts in random.items() for content in parts.values()]
    assert len(set(contents)) == len(contents)
    assert not set(contents) & {content for parts in other.values() for content in parts.values()}


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_low_bit_codes_are_equally_likely_and_keep_the_size_of_activations(small, kind):
    with open_synthetic("small", weights=kind, configs=small) as opened:
        given = opened.given("transformer", BLOCK)
        values = opened.tensor("transformer", BLOCK)
    rows, columns = values.shape
    assert (given.kind, given.group) == (kind, 128)
    assert np.array_equal(values, packing.unpack(kind, given.parts, columns))
    bits = packing.BITS[kind]
    codes = (given.parts[".codes"][..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & (2**bits - 1)
    levels = 2 if kind == "binary" else 3
    shares = np.bincount(codes.reshape(-1)) / codes.size
    assert len(shares) == levels and np.allclose(shares, 1 / levels, atol=0.01)
    assert abs(values.std() * columns**0.5 - 1) < 0.03 and abs(values.mean()) < 0.03 / columns**0.5


@pytest.mark.parametrize("bits", [4, 8])
def test_affine_codes_are_equally_likely_and_centred(small, bits):
    name = f"model.{UP}"
    with open_synthetic("small", weights="keep", encoder_bits=bits, configs=small) as opened:
        given, values = opened.given("text_encoder", name), opened.tensor("text_encoder", name)
        assert opened.given("transformer", BLOCK) is None
    codes = (given.parts[".codes"][..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & (2**bits - 1)
    shares = np.bincount(codes.reshape(-1), minlength=2**bits) * 2**bits / codes.size
    assert (given.kind, given.group) == (f"int{bits}", 64)
    assert len(shares) == 2**bits and abs(shares - 1).max() < 0.4
    assert abs(values.std() * 128**0.5 - 1) < 0.03 and abs(values.mean()) < 0.02 * values.std()


def test_dense_matrices_are_of_the_same_size_as_packed_ones(small):
    with open_synthetic("small", weights="keep", encoder_bits=16, configs=small) as opened:
        dense = opened.tensor("transformer", BLOCK)
        assert all(opened.given(*key) is None for key in everything(opened))
    assert abs(dense.std() * dense.shape[1] ** 0.5 - 1) < 0.03


def test_manifest_says_what_the_bundle_is(bundle):
    opened = Bundle(bundle)
    opened.verify()
    manifest = opened.manifest
    assert manifest["source"] == "synthetic klein-4b (seed 0)" and manifest["license"] == ""
    assert manifest["text"]["length"] == 512 and manifest["weights"] == "ternary"
    assert manifest["text"]["layers"] == list(LAYERS) and "commit" not in manifest
    config = json.loads((bundle / "tokenizer/tokenizer_config.json").read_text("utf-8"))
    assert config["model_max_length"] >= 512


def test_packed_matrices_reach_the_bundle_code_for_code(bundle, small):
    opened = Bundle(bundle)
    names = {"denoiser": ("transformer", BLOCK, BLOCK), "encoder": ("text_encoder", f"model.{UP}", UP)}
    with open_synthetic("klein-4b", weights="ternary", configs=small) as checkpoint:
        for component, (source, name, stored) in names.items():
            for suffix, part in checkpoint.given(source, name).parts.items():
                assert np.array_equal(opened.tensor(component, stored + suffix), part)


def test_modulations_of_every_step_are_finite_and_of_sensible_size(bundle):
    opened = Bundle(bundle)
    table = opened.tensor("denoiser", opened.manifest["modulation"]["table"])
    assert table.shape == (1 + 3 * 5, 17 * 256)  # klein offers five areas; all of them start at 1
    assert np.isfinite(table).all() and abs(table).max() < 10
    assert all(0.2 < row.std() < 1 for row in table)


def test_a_picture_has_512_rows_of_features_and_latents_of_sensible_size(bundle):
    found = diffusers_picture(bundle, "a red apple", (96, 64), 4, seed=0)
    assert found.features.shape == (512, 3 * 128)
    assert 1 < found.features.std() < 30 and abs(found.features).max() < 300
    assert np.isfinite(found.latents).all()
    assert all(0.5 < step.std() < 2.5 for step in found.latents)
    changes = np.diff(found.latents, axis=0)
    assert all(change.std() > 0.05 for change in changes)
    cut_off = np.isin(found.image, (0, 255)).mean()
    assert found.image.std() > 10 and cut_off < 0.2


def test_exactly_one_of_checkpoint_and_synthetic(tmp_path, capsys):
    out = str(tmp_path / "out")
    rest = ["--weights", "binary", "-o", out]
    for arguments, word in (
        ([], "checkpoint"),
        (["folder", "--synthetic", "klein-4b"], "not allowed with"),
        (["--synthetic", "klein-4b", "folder"], "not allowed with"),
        (["--synthetic", "klein-9b"], "klein-4b"),
    ):
        assert build.main(["export", *arguments, *rest]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and word in lines[0]
    assert list(tmp_path.iterdir()) == []
