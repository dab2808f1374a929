"""Five trits a byte: round trips, layout, what onnxruntime makes of them, and damage."""

import hashlib
import shutil
import time

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from exporter import link as linking
from exporter.bundle import Bundle
from exporter.errors import BadBundle, BadCheckpoint
from exporter.graph.functions import DOMAIN, VERSION, linear_function
from exporter.manifest import dump
from exporter.packing import pack, unpack
from exporter.reference import load_pipeline
from exporter.shards import ShardWriter
from exporter.storage import StoredTensor
from exporter.trits import pack_trits, trits_shape, unpack_trits

SHAPES = [(1, 8), (2, 8), (5, 8), (3, 24), (37, 40), (700, 16), (5000, 72)]


def joined(codes: np.ndarray) -> np.ndarray:
    """u32[N, K] codes -> u32[N, K/16] words."""
    return np.bitwise_or.reduce(codes.reshape(len(codes), -1, 16) << np.arange(0, 32, 2, dtype=np.uint32), axis=2)


def random_codes(rows: int, words: int, levels: int = 3) -> np.ndarray:
    return np.random.default_rng(rows * words).integers(0, levels, (rows, 16 * words), np.uint32)


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_come_back_from_bytes_that_hold_five_each(shape):
    codes = random_codes(*shape)
    words = joined(codes)
    trits = pack_trits(words, "w")
    assert trits.dtype == np.uint8 and trits.shape == trits_shape(shape) == (-(-codes.size // 80), 16)
    padded = np.append(codes, np.ones(-codes.size % 80, np.uint32)).reshape(-1, 5)
    assert np.array_equal(trits.reshape(-1), padded @ np.array([1, 3, 9, 27, 81]))
    assert np.array_equal(unpack_trits(trits, shape), words)


def test_every_unit_of_one_code_comes_back():
    for code in range(3):
        words = joined(np.full((10, 128), code, np.uint32))
        assert np.array_equal(unpack_trits(pack_trits(words, "w"), words.shape), words)


def test_a_code_3_is_refused_by_name():
    codes = random_codes(5, 8)
    codes[4, 127] = 3
    with pytest.raises(BadCheckpoint, match="blocks.0.w: expected ternary codes 0, 1 and 2, found code 3"):
        pack_trits(joined(codes), "blocks.0.w")


def test_trits_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="expected shape"):
        unpack_trits(pack_trits(joined(random_codes(5, 8)), "w"), (5, 16))


def test_a_model_of_3_7e9_weights_is_packed_within_minutes():
    words = joined(random_codes(9216, 192))  # one of its larger matrices, 28e6 weights
    start = time.process_time()
    pack_trits(words, "w")
    assert (time.process_time() - start) * 3.7e9 / (words.size * 16) < 180


@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (3, 384), (80, 128), (37, 640)])
@pytest.mark.parametrize("limit", [1 << 20, 700])
def test_onnxruntime_multiplies_with_the_same_matrix(tmp_path, rows, columns, limit):
    rng = np.random.default_rng(rows)
    stored = StoredTensor("w", "ternary", (rows, columns), "w")
    writer = ShardWriter(tmp_path, limit)
    result = stored.store(rng.standard_normal((rows, columns)).astype(np.float32))
    records = {name: writer.add(name, part) for name, part in result.parts.items()}
    writer.finish_shard()
    assert (len(records["w.trits"]["parts"]) > 1) == (limit < 1000 and rows * columns > 2000)

    float32 = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([2, columns]), type=float32)
    parts = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(linking.TYPES[dtype]))
        for name, dtype, shape in stored.parts()
    ]
    function = linear_function("ternary", 128)
    node = ir.node(function.name, [x, *parts], domain=DOMAIN)
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape([2, rows]), float32
    opsets = {"": 23, DOMAIN: VERSION}
    graph = ir.Graph([x], [y], nodes=[node], initializers=parts, opset_imports=opsets, name="g")
    model = ir.Model(graph, ir_version=10, functions=[function])
    linking.link(model, records, writer.shards)
    linking.save(model, tmp_path / "g.onnx")

    given = rng.standard_normal((2, columns)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(tmp_path / "g.onnx").run(None, {"x": given})
    expected = given.astype(np.float64) @ stored.restore(result.parts).T
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_packed_matrix_and_its_stored_form_have_the_same_values():
    weight = np.random.default_rng(1).standard_normal((7, 384)).astype(np.float32)
    stored = StoredTensor("w", "ternary", (7, 384), "w")
    expected = unpack("ternary", pack("ternary", weight).parts, 384)
    assert np.array_equal(stored.restore(stored.store(weight).parts), expected)


def spoil(folder) -> str:
    """Make one byte of a bundle's trits 243, with the hashes right; the tensor's name."""
    bundle = Bundle(folder)
    name, record = next((n, r) for n, r in bundle.tensors("denoiser").items() if "expands_to" in r)
    part, shards = record["parts"][-1], bundle.manifest["shards"]
    old = folder / shards[part["shard"]]["file"]
    content = bytearray(old.read_bytes())
    content[part["offset"] + 5] = 243
    digest = hashlib.sha256(content).hexdigest()
    (folder / f"shards/{digest}.safetensors").write_bytes(content)
    old.unlink()
    shards[part["shard"]].update(file=f"shards/{digest}.safetensors", sha256=digest)
    dump(bundle.manifest, folder)
    return name


def test_a_byte_that_is_no_five_trits_is_named(exported, tmp_path):
    folder = shutil.copytree(exported("two-heads-ternary"), tmp_path / "bundle")
    Bundle(folder).verify()
    name = spoil(folder)
    codes = name.replace(".trits", ".codes")
    for action in (
        lambda: Bundle(folder).verify(),
        lambda: Bundle(folder).tensor("denoiser", name),
        lambda: Bundle(folder).tensor("denoiser", codes),
        lambda: load_pipeline(folder),
    ):
        with pytest.raises(BadBundle) as caught:
            action()
        assert str(caught.value) == f"tensor {name}: expected five trits a byte, below 243, found 243 at byte 5"
