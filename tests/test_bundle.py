"""Exporting and opening bundles: what they hold, what is refused, nothing half-written."""

import errno
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

import exporter.graph
from exporter import reference
from exporter.bundle import Bundle, _write_components, export_bundle
from exporter.checkpoint import Checkpoint
from exporter.errors import BadArguments, BadBundle, BadCheckpoint, BitbrushError, DiskFull
from exporter.link import TYPES
from exporter.manifest import COMPONENTS, FORMAT
from exporter.modulation import TABLE
from exporter.output import new_folder
from exporter.passes.join_parts import join_parts
from exporter.prompt import open_tokenizer, render
from exporter.shards import ShardWriter
from exporter.storage import StoredTensor
from exporter.tensorfile import TensorFile
from tests.tiny import CORPUS, make_pipeline

LAYERS = (1, 2, 3)
SHARD_LIMIT = 60_000  # small enough to split the tiny model's larger tensors by rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("bundle") / "tiny", ternary=True, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def graphs(checkpoint):
    """The tiny pipeline's graphs, exported once; tests get copies, because linking changes them."""
    return exporter.graph.export_graphs(
        Checkpoint(checkpoint).configs, weights="ternary", encoder_bits=4, encoder_layers=LAYERS
    )


@pytest.fixture
def quick(monkeypatch, graphs):
    """Skip the slow graph stage: exports of the tiny pipeline reuse `graphs`."""

    def copies(*_, **__):
        return {
            name: exporter.graph.ComponentGraph(graph.model.clone(), graph.tensors, graph.notes)
            for name, graph in graphs.items()
        }

    monkeypatch.setattr(exporter.graph, "export_graphs", copies)


def export(checkpoint: Path, out: Path, **options):
    return export_bundle(
        checkpoint, out, **{"weights": "ternary", "layers": LAYERS, "shard_limit": SHARD_LIMIT, **options}
    )


@pytest.fixture
def bundle(checkpoint, quick, tmp_path) -> Bundle:
    return Bundle(export(checkpoint, tmp_path / "tiny-ternary").folder)


def refusal(error: type[BitbrushError], action) -> str:
    with pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    return message


def random_input(entry, rng) -> np.ndarray:
    """Data for an ONNX input, with 6 for every size that is a symbol."""
    shape = [size if isinstance(size, int) else 6 for size in entry.shape]
    if entry.type == "tensor(int64)":
        return rng.integers(0, 500, shape)
    if entry.type == "tensor(bool)":
        return np.ones(shape, bool)
    return rng.standard_normal(shape).astype(np.float32)


def test_manifest_records_what_the_runtime_needs(bundle, checkpoint):
    manifest = bundle.manifest
    assert (manifest["name"], manifest["variant"], manifest["weights"]) == ("tiny", "ternary", "ternary")
    assert manifest["source"] == "tiny"
    text = manifest["text"]
    assert (text["prefix"], text["suffix"]) == (
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    )
    assert (text["length"], text["layers"], text["features"]) == (32, [1, 2, 3], 384)
    assert text["rotary"] == {"head_size": 64, "theta": 10000.0}
    assert manifest["latents"] == {"channels": 16, "downscale": 16}
    assert manifest["denoiser"] == {
        "rotary": {"axes": [16, 16, 16, 16], "theta": 2000},
        "timestep_features": 256,
    }
    scheduler = json.loads((checkpoint / "scheduler/scheduler_config.json").read_text())
    assert manifest["schedule"] == {**scheduler, "steps": 4}
    assert manifest["sizes"]["default"] == [64, 64]
    assert bundle.configs == Checkpoint(checkpoint).configs


def test_tokens_of_the_bundle_are_the_checkpoints(bundle, checkpoint):
    text = bundle.manifest["text"]
    original = open_tokenizer(checkpoint / "tokenizer")
    copied = open_tokenizer(bundle.path / text["tokenizer"])
    for prompt in ["", *CORPUS]:
        rendered = text["prefix"] + prompt + text["suffix"]
        assert rendered == render(original, prompt)
        assert copied(rendered).input_ids == original(rendered).input_ids


def test_shards_are_bounded_whole_and_split_by_rows(bundle):
    bundle.verify()
    assert all(shard["bytes"] <= SHARD_LIMIT for shard in bundle.manifest["shards"])
    split = [name for name, record in bundle.tensors("denoiser").items() if len(record["parts"]) > 1]
    assert split
    owners = {}
    for component in bundle.manifest["components"]:
        for record in bundle.tensors(component).values():
            for part in record["parts"]:
                assert owners.setdefault(part["shard"], component) == component
    files = {shard["file"] for shard in bundle.manifest["shards"]}
    assert {f"shards/{file.name}" for file in (bundle.path / "shards").iterdir()} == files


def test_ternary_weights_of_a_ternary_checkpoint_are_exact(checkpoint, quick, tmp_path):
    exported = export(checkpoint, tmp_path / "b")
    assert any("denoiser: 16 matrices packed as ternary without loss" in note for note in exported.notes)
    found = reference.load_pipeline(exported.folder).transformer.state_dict()
    for name, tensor in load_file(checkpoint / "transformer/diffusion_pytorch_model.safetensors").items():
        if "blocks" in name:
            assert torch.equal(found[name], tensor.float()), name
        else:  # dense matrices pass from bfloat16 to float16: exact down to its subnormal numbers
            assert torch.allclose(found[name], tensor.float(), rtol=0, atol=2**-25), name


def test_graphs_hold_no_path_of_this_machine(bundle):
    for component in COMPONENTS:
        content = bundle.graph(component).read_bytes()
        assert b".py" not in content and b"site-packages" not in content and str(Path.cwd()).encode() not in content


def test_tensors_split_over_shards_compute_the_same(bundle, checkpoint, quick, tmp_path):
    whole = Bundle(export(checkpoint, tmp_path / "whole", shard_limit=1 << 25).folder)
    assert all(len(record["parts"]) == 1 for c in COMPONENTS for record in whole.tensors(c).values())
    rng = np.random.default_rng(0)
    for component in COMPONENTS:
        sessions = [onnxruntime.InferenceSession(opened.graph(component)) for opened in (bundle, whole)]
        inputs = {entry.name: random_input(entry, rng) for entry in sessions[0].get_inputs()}
        found, expected = (session.run(None, inputs)[0] for session in sessions)
        assert np.array_equal(found, expected) and np.isfinite(found).all()
        models = [ir.load(opened.graph(component)) for opened in (bundle, whole)]
        for model in models:
            join_parts(model)
        names = [{value.name: value.shape for value in model.graph.initializers.values()} for model in models]
        assert names[0] == names[1] and set(whole.tensors(component)) - {TABLE} <= set(names[0])


def test_reference_is_saved_as_a_diffusers_folder(bundle, tmp_path):
    assert reference.main([str(bundle.path), str(tmp_path / "reference")]) == 0
    saved = Flux2KleinPipeline.from_pretrained(tmp_path / "reference")
    expected = reference.load_pipeline(bundle.path)
    for name in ("transformer", "vae", "text_encoder"):
        state = getattr(expected, name).state_dict()
        for key, tensor in getattr(saved, name).state_dict().items():
            assert torch.equal(tensor, state[key]), key
    assert saved.config.is_distilled


def test_reference_of_something_else_is_one_line_and_exit_code(tmp_path, capsys):
    assert reference.main([str(tmp_path / "missing"), str(tmp_path / "out")]) == 3
    assert reference.main(["one"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and "expected a bundle folder" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_value_beyond_float16_makes_the_matrix_float32_in_bundle_and_graph(checkpoint, quick, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "big")
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["x_embedder.weight"][0, 0] = 1e5
    save_file(tensors, file)
    bundle = Bundle(export(folder, tmp_path / "b").folder)
    record = bundle.tensors("denoiser")["x_embedder.weight"]
    assert record["dtype"] == "F32"
    assert bundle.tensor("denoiser", "x_embedder.weight")[0, 0] == tensors["x_embedder.weight"][0, 0].float()
    onnxruntime.InferenceSession(bundle.graph("denoiser"))


def test_license_texts_and_card_travel_with_the_weights(checkpoint, quick, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "licensed")
    (folder / "LICENSE.txt").write_text("terms")
    (folder / "NOTICE").write_text("notice")
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\n# Model\n")
    bundle = Bundle(export(folder, tmp_path / "b").folder)
    assert bundle.manifest["license"] == "apache-2.0"
    assert (bundle.path / "LICENSE.txt").read_text() == "terms" and (bundle.path / "NOTICE").exists()


def test_old_tokenizer_folder_gets_a_tokenizer_json(checkpoint, quick, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "old")
    whole = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {token["content"]: token["id"] for token in whole["added_tokens"]}
    (folder / "tokenizer/added_tokens.json").write_text(json.dumps(added))
    bundle = Bundle(export(folder, tmp_path / "b").folder)
    copied, original = open_tokenizer(bundle.path / "tokenizer"), open_tokenizer(checkpoint / "tokenizer")
    for prompt in CORPUS:
        assert copied(render(original, prompt)).input_ids == original(render(original, prompt)).input_ids


def test_memory_holds_the_largest_tensor_not_the_model(tmp_path):
    count, shape = 100, (1024, 128)
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tensors = [StoredTensor(f"m{i}", "binary", shape, f"m{i}") for i in range(count)]
    save_numpy({tensor.source: matrix for tensor in tensors}, tmp_path / "x.safetensors")
    values = [
        ir.Value(name=name, shape=ir.Shape(size), type=ir.TensorType(TYPES[dtype]))
        for tensor in tensors
        for name, dtype, size in tensor.parts()
    ]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 23})
    component = exporter.graph.ComponentGraph(ir.Model(graph, ir_version=10), tensors)
    file = TensorFile(tmp_path / "x.safetensors", "x.safetensors")
    opened = SimpleNamespace(tensor=lambda component, name: file.read_f32(name), given=lambda component, name: None)

    tracemalloc.start()
    _write_components(opened, {"encoder": component}, tmp_path, ShardWriter(tmp_path, 1 << 20), lambda *_: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * matrix.nbytes < count * matrix.nbytes / 8


# Refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "octal"}, "--weights: expected binary, ternary or keep, found 'octal'"),
        ({"encoder_bits": 5}, "--encoder-bits: expected 4, 8 or 16, found 5"),
        ({"layers": None}, "pass --encoder-layers"),
    ],
)
def test_bad_arguments_of_an_export(checkpoint, tmp_path, options, words):
    assert words in refusal(BadArguments, lambda: export(checkpoint, tmp_path / "b", **options))
    assert list(tmp_path.iterdir()) == []


def drop_tensor(tensors):
    del tensors["single_transformer_blocks.0.attn.to_out.weight"]


def widen_tensor(tensors):
    tensors["x_embedder.weight"] = torch.zeros(128, 17)


def spoil_tensor(tensors):
    tensors["single_transformer_blocks.1.attn.to_out.weight"][3, 4] = float("nan")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_tensor, "expected tensor single_transformer_blocks.0.attn.to_out.weight"),
        (
            widen_tensor,
            "x_embedder.weight: expected shape [128, 16] from transformer/config.json, found [128, 17]",
        ),
        (spoil_tensor, "single_transformer_blocks.1.attn.to_out.weight: expected finite weights"),
    ],
)
def test_damaged_weights_leave_nothing_behind(checkpoint, quick, tmp_path, damage, words):
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    out = tmp_path / "out"
    out.mkdir()
    message = refusal(BadCheckpoint, lambda: export(folder, out / "b"))
    assert words in message
    assert list(out.iterdir()) == []


def test_output_that_is_no_bundle_is_never_overwritten(checkpoint, tmp_path):
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert "nothing was changed" in refusal(BadArguments, lambda: export(checkpoint, out))
    assert (out / "thesis.txt").read_text() == "years of work" and list(tmp_path.iterdir()) == [out]
    assert "nothing was changed" in refusal(BadArguments, lambda: export(checkpoint, out / "thesis.txt"))
    assert "nothing was changed" in refusal(BadArguments, lambda: export(checkpoint, checkpoint))


def test_output_that_cannot_be_written_is_refused(checkpoint, tmp_path):
    (tmp_path / "file").write_text("x")
    message = refusal(BadArguments, lambda: export(checkpoint, tmp_path / "file/deep/b"))
    assert "expected a folder that can be written" in message
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_existing_bundle_is_replaced_as_a_whole(bundle, checkpoint, quick):
    (bundle.path / "shards/leftover").write_text("x")
    export(checkpoint, bundle.path)
    assert not (bundle.path / "shards/leftover").exists()
    Bundle(bundle.path).verify()
    assert os.listdir(bundle.path.parent) == [bundle.path.name]


def test_bundle_of_an_older_format_is_refused_and_can_be_replaced(bundle, checkpoint, quick):
    manifest = {**bundle.manifest, "format": 1}
    del manifest["modulation"]
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    assert "export it again" in refusal(BadBundle, lambda: Bundle(bundle.path))
    export(checkpoint, bundle.path)
    Bundle(bundle.path).verify()
    for content in ('{"format": 1}', "[]", '{"format": "1"}'):
        (bundle.path / "manifest.json").write_text(content)
        assert "nothing was changed" in refusal(BadArguments, lambda: export(checkpoint, bundle.path))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, BadCheckpoint("expected"), RuntimeError])
def test_interrupted_work_leaves_the_old_bundle(bundle, failure):
    before = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises((KeyboardInterrupt, BadCheckpoint, RuntimeError)), new_folder(bundle.path) as work:
        (work / "half.txt").write_text("half")
        raise failure
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert os.listdir(bundle.path.parent) == [bundle.path.name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_the_old_bundle(bundle, code):
    def fill() -> None:
        with new_folder(bundle.path) as work:
            (work / "half.bin").write_bytes(bytes(3_000_000))
            raise OSError(code, os.strerror(code))

    assert "expected more room on the disk, found it full after 3 MB" in refusal(DiskFull, fill)
    assert os.listdir(bundle.path.parent) == [bundle.path.name] and DiskFull.exit_code == 3
    Bundle(bundle.path).verify()


def test_bundle_with_a_flipped_byte_names_the_shard(bundle):
    shard = bundle.path / bundle.manifest["shards"][2]["file"]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    message = refusal(BadBundle, Bundle(bundle.path).verify)
    assert message.startswith(f"shards/{shard.name}") and "damaged" in message
    refusal(BadBundle, lambda: reference.load_pipeline(bundle.path))


@pytest.mark.parametrize(
    "file", ["denoiser.onnx", "tokenizer/tokenizer.json", "configs/vae/config.json", "manifest.json"]
)
def test_bundle_without_a_file_is_refused(bundle, file):
    (bundle.path / file).unlink()
    assert file in refusal(BadBundle, lambda: Bundle(bundle.path))


def test_bundle_of_a_newer_format_is_refused(bundle):
    manifest = {**bundle.manifest, "format": FORMAT + 1}
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    assert "written by a newer Bitbrush" in refusal(BadBundle, lambda: Bundle(bundle.path))


def test_unknown_tensor_of_a_bundle_is_refused(bundle):
    assert "expected tensor nope in decoder" in refusal(BadBundle, lambda: bundle.tensor("decoder", "nope"))
