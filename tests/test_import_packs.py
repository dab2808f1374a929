"""Whole packs of MLX's format: exported like the diffusers folders they were made of, or refused in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors.torch import load_file, save_file

import exporter.graph
from exporter import reference
from exporter.bundle import Bundle, export_bundle
from exporter.checkpoint import KLEIN_SCHEDULER, Checkpoint
from exporter.errors import BadArguments, BadCheckpoint
from exporter.link import TYPES
from exporter.packing import unpack
from exporter.prompt import open_tokenizer
from tests.mlx_packs import BITS, FILE, NAME, make_pack, numbers
from tests.tiny import make_pipeline

LAYERS = (1,)


def refusal(action, error=BadCheckpoint) -> str:
    with pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    return message


def bare(graph: exporter.graph.ComponentGraph, weights: str, encoder_bits: int) -> exporter.graph.ComponentGraph:
    """The tensors with matrices of other kinds, and a model of initializers alone."""
    kinds = {"ternary": weights, "int4": f"int{encoder_bits}"}
    tensors = [replace(tensor, kind=kinds.get(tensor.kind, tensor.kind)) for tensor in graph.tensors]
    values = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(TYPES[dtype]))
        for tensor in tensors
        for name, dtype, shape in tensor.parts()
    ]
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 23}), ir_version=10)
    return exporter.graph.ComponentGraph(model, tensors, graph.notes)


@pytest.fixture(scope="module")
def graphs(pipelines):
    """What the tiny pipeline's graphs are made of, exported once."""
    configs = Checkpoint(pipelines["ternary"]).configs
    return exporter.graph.export_graphs(configs, weights="ternary", encoder_bits=4, encoder_layers=LAYERS)


@pytest.fixture
def quick(monkeypatch, graphs):
    """Skip the slow graph stage: exports reuse the tensors of `graphs`, and the one graph that export runs."""

    def bare_graphs(configs, *, weights, encoder_bits, encoder_layers):
        made = {name: bare(graph, weights, encoder_bits) for name, graph in graphs.items()}
        made["modulation"].model = graphs["modulation"].model.clone()
        return made

    monkeypatch.setattr(exporter.graph, "export_graphs", bare_graphs)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mlx")
    return {
        kind: make_pipeline(
            folder / kind / "tiny", **{kind: True}, dtype=torch.bfloat16, double=1, single=1, layers=LAYERS
        )
        for kind in BITS
    }


def export(checkpoint: Path, out: Path, **options):
    return export_bundle(checkpoint, out, layers=LAYERS, **options)


def assert_same_parts(found: Bundle, expected: Bundle, component: str) -> None:
    names = expected.tensors(component)
    assert names and set(found.tensors(component)) == set(names)
    for name in names:
        left, right = found.tensor(component, name), expected.tensor(component, name)
        assert left.dtype == right.dtype and np.array_equal(left, right), name


@pytest.mark.parametrize("kind", BITS)
def test_pack_exports_like_the_folder_it_was_made_of(pipelines, quick, tmp_path, kind):
    pack = make_pack(pipelines[kind], tmp_path / "pack", kind)
    exported = export(pack, tmp_path / "packed", weights=kind)
    assert [note for note in exported.notes if "packed as" in note] == [
        "encoder: 8 matrices packed as int4 without loss",
        f"denoiser: 14 matrices packed as {kind} without loss",
    ]
    bundle = Bundle(exported.folder)
    bundle.verify()
    folder = Bundle(export(pipelines[kind], tmp_path / "folder", weights=kind).folder)
    for component in ("modulation", "denoiser", "decoder"):
        assert_same_parts(bundle, folder, component)
    words = mx.load(str(pack / "text_encoder-mlx-4bit/model.safetensors"))
    names = [name.removesuffix(".codes") for name in bundle.tensors("encoder") if name.endswith(".codes")]
    assert names
    for name in names:
        base = "model." + name.removesuffix(".weight")
        assert np.array_equal(bundle.tensor("encoder", f"{name}.codes"), np.array(words[f"{base}.weight"]))
        assert np.array_equal(bundle.tensor("encoder", f"{name}.scales"), numbers(words[f"{base}.scales"]))
        assert np.array_equal(bundle.tensor("encoder", f"{name}.offsets"), numbers(words[f"{base}.biases"]))
    for file in (path.relative_to(folder.path) for path in folder.path.rglob("*") if path.parent.name != "shards"):
        assert (bundle.path / file).exists(), file
    assert (bundle.path / "LICENSE").read_text() == "terms"
    assert "quantization" not in json.dumps(bundle.configs["text_encoder"])
    assert bundle.manifest["text"] == folder.manifest["text"]
    index = json.loads((bundle.path / "configs/model_index.json").read_text())
    original = json.loads((folder.path / "configs/model_index.json").read_text())
    assert index == {**original, "_diffusers_version": "0.37.0.dev0"}


def test_reference_of_a_pack_is_a_diffusers_folder_with_the_packs_values(pipelines, quick, tmp_path):
    pack = make_pack(pipelines["ternary"], tmp_path / "pack", "ternary")
    bundle = export(pack, tmp_path / "packed", weights="ternary").folder
    assert reference.main([str(bundle), str(tmp_path / "reference")]) == 0
    pipeline = Flux2KleinPipeline.from_pretrained(tmp_path / "reference")
    opened = Checkpoint(pack)
    state = pipeline.transformer.state_dict()
    for name, tensor in load_file(pipelines["ternary"] / "transformer" / FILE).items():
        assert torch.allclose(state[name], tensor.float(), rtol=0, atol=2**-25), name
    state = pipeline.text_encoder.state_dict()
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"):
        assert np.array_equal(state[name].numpy(), opened.tensor("text_encoder", name)), name


@pytest.mark.parametrize(("holds", "asked"), [("binary", "ternary"), ("ternary", "binary")])
def test_weights_of_another_kind_than_the_packs_are_refused(pipelines, quick, tmp_path, holds, asked):
    pack = make_pack(pipelines[holds], tmp_path / "pack", holds)
    message = refusal(lambda: export(pack, tmp_path / "out/b", weights=asked), BadArguments)
    assert message.startswith(f"--weights: expected {holds}, as transformer-packed-mflux/{FILE} holds ")
    assert message.endswith(f", found {asked}") and list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("place", ["text_encoder-mlx-4bit", "text_encoder-mlx-4bit/tokenizer"])
def test_tokenizer_beside_the_text_encoder_and_no_scheduler(pipelines, quick, tmp_path, place):
    pack = make_pack(pipelines["ternary"], tmp_path / "pack", "ternary")
    for file in list((pack / "tokenizer").iterdir()):
        (pack / place).mkdir(exist_ok=True)
        file.rename(pack / place / file.name)
    (pack / "tokenizer").rmdir()
    shutil.rmtree(pack / "scheduler")
    bundle = Bundle(export(pack, tmp_path / "b", weights="ternary").folder)
    assert bundle.manifest["schedule"] == {**KLEIN_SCHEDULER, "steps": 4}
    assert json.loads((bundle.path / "configs/scheduler/scheduler_config.json").read_text()) == KLEIN_SCHEDULER
    text = bundle.manifest["text"]
    folders = (bundle.path / text["tokenizer"], pipelines["ternary"] / "tokenizer")
    tokenizers = [open_tokenizer(folder) for folder in folders]
    rendered = text["prefix"] + "a red apple" + text["suffix"]
    assert len({tuple(tokenizer(rendered).input_ids) for tokenizer in tokenizers}) == 1
    (pack / place / "tokenizer.json").unlink()
    assert "tokenizer: expected tokenizer.json" in refusal(lambda: Checkpoint(pack))


def test_folders_of_a_component_are_found_or_named(pipelines, tmp_path):
    pack = make_pack(pipelines["binary"], tmp_path / "pack", "binary")
    other = shutil.copytree(pack / "transformer-packed-mflux", pack / "transformer-other")
    message = refusal(lambda: Checkpoint(pack))
    assert "expected a folder transformer," in message
    assert message.endswith("found transformer-other and transformer-packed-mflux")
    shutil.rmtree(other)
    (pack / "transformer-packed-mflux").rename(pack / "denoiser")
    assert refusal(lambda: Checkpoint(pack)).endswith("found none")


def test_weights_of_two_kinds_in_a_folder_are_refused(pipelines, tmp_path):
    pack = make_pack(pipelines["binary"], tmp_path / "pack", "binary")
    folder = pack / "transformer-packed-mflux"
    (folder / "state_dict.pt").write_bytes(b"")
    assert refusal(lambda: Checkpoint(pack)) == (
        f"transformer-packed-mflux: expected weights of one kind, found {FILE} and state_dict.pt"
    )
    (folder / "state_dict.pt").unlink()
    (folder / FILE).unlink()
    assert refusal(lambda: Checkpoint(pack)).startswith(f"transformer-packed-mflux: expected {FILE} or its .index")


def test_scale_that_float16_does_not_hold_is_packed_anew_with_its_error(pipelines, quick, tmp_path):
    pack = make_pack(pipelines["ternary"], tmp_path / "pack", "ternary")
    path = pack / "transformer-packed-mflux" / FILE
    tensors = load_file(path)
    for suffix, sign in ((".scales", 1), (".biases", -1)):
        values = tensors[NAME + suffix].float()
        values[0, 0] = sign * 0.1  # 0.1 as float32 is no float16
        tensors[NAME + suffix] = values
    save_file(tensors, path)
    notes = export(pack, tmp_path / "b", weights="ternary").notes
    assert any("13 of them without loss; largest relative error" in note and NAME in note for note in notes)


def test_other_bits_than_the_text_encoders_are_packed_from_its_values(pipelines, quick, tmp_path):
    pack = make_pack(pipelines["binary"], tmp_path / "pack", "binary")
    exported = export(pack, tmp_path / "b", weights="binary", encoder_bits=8)
    assert any(note.startswith("encoder: 8 matrices packed as int8, ") for note in exported.notes)
    bundle, opened = Bundle(exported.folder), Checkpoint(pack)
    name = "layers.0.mlp.up_proj.weight"
    parts = {suffix: bundle.tensor("encoder", name + suffix) for suffix in (".codes", ".scales", ".offsets")}
    expected = opened.tensor("text_encoder", f"model.{name}")
    found = unpack("int8", parts, expected.shape[1], 64)
    assert 0 < np.linalg.norm(found - expected) < 5e-3 * np.linalg.norm(expected)
