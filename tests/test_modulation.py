"""What depends on the time alone: cut out of the graph, evaluated at export, kept out of a first visit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from exporter import modulation
from exporter.bundle import Bundle
from exporter.errors import BadCheckpoint
from exporter.graph.split_modulation import split_modulation
from exporter.lower import lower_bundle
from exporter.manifest import first_download
from exporter.modulation import evaluate, write_table
from exporter.reference import load_pipeline
from exporter.schedule import timestep_features
from exporter.shards import ShardWriter
from tests.reference import relative_error


@pytest.fixture(scope="module")
def bundle(exported) -> Bundle:
    return Bundle(exported("two-heads-ternary"))


def test_the_table_has_the_times_of_four_steps_at_every_offered_size(bundle):
    manifest, expected = bundle.manifest, set()
    for width, height in manifest["sizes"]["presets"]:
        scheduler = FlowMatchEulerDiscreteScheduler(**bundle.configs["scheduler"])
        mu = compute_empirical_mu(image_seq_len=width * height // 256, num_steps=4)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 4, 4), mu=mu)
        expected |= {float(sigma) for sigma in scheduler.sigmas[:-1]}
    found = manifest["modulation"]["sigmas"]
    assert found[0] == 1 and len(found) == len(set(found)) == 13  # four numbers of tokens; all start at 1
    np.testing.assert_array_max_ulp(np.float32(found), np.float32(sorted(expected, reverse=True)), maxulp=1)
    assert [float(np.float32(sigma)) for sigma in found] == found


@torch.no_grad()
def test_rows_of_the_table_are_what_torch_computes_at_their_times(bundle):
    record = bundle.manifest["modulation"]
    table = bundle.tensor("denoiser", record["table"])
    assert table.shape == (len(record["sigmas"]), record["width"]) and table.dtype == np.float32
    model = load_pipeline(bundle.path).transformer
    schedule = bundle.manifest["schedule"]
    sinusoids = [timestep_features(sigma, schedule, 256) for sigma in record["sigmas"]]
    # torch's float32 exp may be one unit (6e-8) off, which an angle of up to 1000 multiplies.
    theirs = model.time_guidance_embed.time_proj(torch.tensor(record["sigmas"]) * 1000).numpy()
    np.testing.assert_allclose(np.concatenate(sinusoids), theirs, rtol=0, atol=7e-5)
    again = evaluate(bundle.graph("modulation"), sinusoids)
    embedded = torch.nn.functional.silu(
        model.time_guidance_embed.timestep_embedder(torch.tensor(np.concatenate(sinusoids)))
    )
    double = [model.double_stream_modulation_img, model.double_stream_modulation_txt]
    heads = [*double, model.single_stream_modulation, model.norm_out]
    expected = torch.cat([head.linear(embedded) for head in heads], dim=1).numpy()
    for found, *others in zip(table, again, expected, strict=True):
        assert all(relative_error(found, other) < 1e-6 for other in others)
    assert min(relative_error(a, b) for a, b in zip(table, table[1:], strict=False)) > 1e-3, "the time counts"


def test_the_denoiser_reads_the_vector_in_place_and_holds_no_weight_of_the_time(bundle):
    plans = lower_bundle(bundle.path)
    values = [value["name"] for value in plans["denoiser"]["values"]]
    vector = values.index("modulation")
    readers = {d["kernel"] for d in plans["denoiser"]["dispatches"] if vector in d["bindings"].values()}
    assert readers == {"layer_norm", "linear"} and "timestep_features" not in values
    assert not [name for name in bundle.tensors("denoiser") if "modulation" in name and name != modulation.TABLE]
    shards = {
        component: {part["shard"] for record in bundle.tensors(component).values() for part in record["parts"]}
        for component in bundle.manifest["components"]
    }
    own = shards.pop("modulation")
    assert own and not own & set().union(*shards.values())
    sizes = [shard["bytes"] for shard in bundle.manifest["shards"]]
    assert first_download(bundle.manifest) == sum(sizes) - sum(sizes[index] for index in own)


def test_a_modulation_that_is_no_number_is_refused(bundle, monkeypatch, tmp_path):
    table = np.zeros((7, 4), np.float32)
    table[2, 1] = np.inf
    monkeypatch.setattr(modulation, "evaluate", lambda graph, features: table)
    with pytest.raises(BadCheckpoint, match="expected finite modulations, found others at sigma 0.9"):
        write_table(bundle.path, bundle.manifest, ShardWriter(tmp_path))


# The pass on graphs that no model has. w1, w2, b are weights without data; x is another input.

HEAD = '<ir_version: 10, opset_import: ["" : 23]>\n'
STRANGE = """g (float[1,4] timestep_features, float[1,6] x) => (float[1,6] y, float[2,3] z)
<float[4,6] w1, float[6] b, float[6,2,3] w2, float[1,6] c = {1,2,3,4,5,6}, int64[2] two = {2,3}, int64[2] rows = {6,6}>
{
    h = MatMul(timestep_features, w1)
    s = Sigmoid(h)
    moved = Add(s, b)
    shifted = Add(moved, c)
    flat = Reshape(w2, rows)
    last = MatMul(s, flat)
    z = Reshape(last, two)
    again = Mul(last, x)
    y = Add(again, shifted)
}"""
DATA = {
    "w1": np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32),
    "w2": np.random.default_rng(2).standard_normal((6, 2, 3)).astype(np.float32),
    "b": np.arange(6, dtype=np.float32),
}


def parsed(text: str) -> ir.Model:
    """Initializers that the text lists without data are weights; all values get their shapes."""
    proto = onnx.parser.parse_model(HEAD + text)
    weights = {value.name: value for value in proto.graph.value_info if value.name in DATA}
    for value in weights.values():
        proto.graph.input.append(value)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    for value in [value for value in model.graph.inputs if value.name in DATA]:
        model.graph.inputs.remove(value)
        model.graph.initializers[value.name] = value
    return model


def run(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, value in model.graph.initializers.items():
        if name in DATA:
            value.const_value = ir.tensor(DATA[name])
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def test_any_graph_is_cut_behind_its_last_weights_and_computes_the_same():
    rng = np.random.default_rng(0)
    time, x = (rng.standard_normal((1, size)).astype(np.float32) for size in (4, 6))
    expected = run(parsed(STRANGE), {"timestep_features": time, "x": x})
    part, denoiser = split_modulation(parsed(STRANGE))
    assert set(part.graph.initializers) & set(DATA) == set(DATA) and not set(denoiser.graph.initializers) & set(DATA)
    assert [value.name for value in denoiser.graph.inputs] == ["modulation", "x"]
    vector = run(part, {"timestep_features": time})["modulation"]
    assert vector.shape == (1, 12)  # moved and last, not shifted and z
    found = run(denoiser, {"modulation": vector, "x": x})
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("y = Mul(timestep_features, x)", "expected weights that only timestep_features passes through, found none"),
        ("m = MatMul(timestep_features, w)\n h = Mul(m, x)\n y = Add(h, timestep_features)", "found Add use it"),
    ],
)
def test_a_time_that_passes_no_weight_is_refused(body, words, monkeypatch):
    monkeypatch.setitem(DATA, "w", np.eye(4, dtype=np.float32))
    text = f"g (float[1,4] timestep_features, float[1,4] x) => (float[1,4] y) <float[4,4] w> {{ {body} }}"
    with pytest.raises(BadCheckpoint, match=words):
        split_modulation(parsed(text))
