"""Shards and manifest: exact bytes, splitting, alignment, damage."""

import copy
import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from exporter import manifest as manifests
from exporter.errors import BadBundle, BadCheckpoint
from exporter.shards import ShardReader, ShardWriter


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "odd": rng.standard_normal(3).astype(np.float16),
        "codes": rng.integers(0, 2**32, (8, 4), dtype=np.uint32),
        "bias": rng.standard_normal(5).astype(np.float32),
        "table": rng.standard_normal((2, 6)).astype(np.float32),
        "conv": rng.standard_normal((2, 3, 3, 4)).astype(np.float16),
        "w.trits": rng.integers(0, 243, (13, 16), dtype=np.uint8),
    }


def write(folder, tensors, limit=1 << 20):
    writer = ShardWriter(folder, limit)
    records = {name: writer.add(name, array) for name, array in tensors.items()}
    writer.finish_shard()
    return writer.shards, records


def test_shard_is_a_safetensors_file_named_by_its_hash(tmp_path):
    shards, records = write(tmp_path, arrays())
    (shard,) = shards
    content = (tmp_path / shard["file"]).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert shard == {"file": f"shards/{digest}.safetensors", "bytes": len(content), "sha256": digest}
    found = load_file(tmp_path / shard["file"])
    assert set(found) == set(arrays())
    for name, array in arrays().items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        part = records[name]["parts"][0]
        assert content[part["offset"] : part["offset"] + part["bytes"]] == array.tobytes()


def test_exact_bytes_of_a_small_shard(tmp_path):
    shards, _ = write(
        tmp_path, {"b": np.array([1, 2, 3], np.float16), "a": np.arange(4, dtype=np.uint32).reshape(1, 4)}
    )
    header = b'{"a":{"dtype":"U32","shape":[1,4],"data_offsets":[0,16]},'
    header += b'"b":{"dtype":"F16","shape":[3],"data_offsets":[16,22]}}'
    header += b" " * (-(8 + len(header)) % 16)
    data = np.arange(4, dtype="<u4").tobytes() + np.array([1, 2, 3], "<f2").tobytes()
    assert (tmp_path / shards[0]["file"]).read_bytes() == len(header).to_bytes(8, "little") + header + data


def test_same_tensors_give_the_same_shards(tmp_path):
    assert write(tmp_path / "a", arrays()) == write(tmp_path / "b", arrays())
    assert write(tmp_path / "c", arrays(1))[0] != write(tmp_path / "a", arrays())[0]


def test_tensors_of_whole_multiples_of_16_bytes_are_aligned(tmp_path):
    _, records = write(tmp_path, arrays())
    for name, array in arrays().items():
        if array.nbytes % 16 == 0:
            assert records[name]["parts"][0]["offset"] % 16 == 0


@pytest.mark.parametrize("limit", [700, 1024, 5000, 1 << 16])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint32])
def test_tensors_of_any_size_come_back_from_bounded_shards(tmp_path, limit, dtype):
    rng = np.random.default_rng(limit)
    tensors = {
        f"blocks.{i}.weight": rng.integers(0, 1000, (rng.integers(1, 200), rng.integers(1, 12))).astype(dtype)
        for i in range(25)
    }
    shards, records = write(tmp_path, tensors, limit)
    assert all(shard["bytes"] <= limit for shard in shards)
    assert all((tmp_path / shard["file"]).stat().st_size == shard["bytes"] for shard in shards)
    reader = ShardReader(tmp_path, shards)
    for name, array in tensors.items():
        found = reader.read(name, records[name])
        assert found.dtype == array.dtype and np.array_equal(found, array)
        row = array[:1].nbytes
        assert all(part["bytes"] % row == 0 for part in records[name]["parts"])
    for shard in shards:
        load_file(tmp_path / shard["file"])


def test_split_tensor_has_rows_in_order_in_several_shards(tmp_path):
    array = np.arange(4000, dtype=np.float32).reshape(400, 10)
    shards, records = write(
        tmp_path, {"first": np.zeros(4, np.float32), "w": array, "last": np.ones(4, np.float32)}, 6000
    )
    parts = records["w"]["parts"]
    assert len(parts) > 2 and [part["shard"] for part in parts] == sorted(part["shard"] for part in parts)
    assert "w.part1" in load_file(tmp_path / shards[parts[1]["shard"]]["file"])
    assert np.array_equal(ShardReader(tmp_path, shards).read("w", records["w"]), array)


def test_row_larger_than_a_shard_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match="wide: expected rows of at most"):
        ShardWriter(tmp_path, 1024).add("wide", np.zeros((2, 1000), np.float32))


def test_finishing_twice_writes_no_empty_shard(tmp_path):
    writer = ShardWriter(tmp_path)
    writer.finish_shard()
    writer.add("a", np.zeros(4, np.float32))
    writer.finish_shard()
    writer.finish_shard()
    assert len(writer.shards) == len(list((tmp_path / "shards").iterdir())) == 1


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_flip, "the shard is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, found"),
        (lambda path: path.unlink(), "found no such file"),
    ],
)
def test_damaged_shard_is_named(tmp_path, damage, words):
    shards, records = write(tmp_path, arrays())
    damage(tmp_path / shards[0]["file"])
    for action in (lambda reader: reader.check_all(), lambda reader: reader.read("codes", records["codes"])):
        with pytest.raises(BadBundle) as caught:
            action(ShardReader(tmp_path, shards))
        message = str(caught.value)
        assert message.startswith(shards[0]["file"]) and words in message and "\n" not in message


def small_manifest(folder) -> dict:
    shards, records = write(folder, arrays())
    records["w.trits"]["expands_to"] = {"name": "w.codes", "shape": [8, 8]}
    component = {"graph": "x.onnx", "plan": "x.plan.json", "tensors": records}
    return {
        "format": 2,
        "name": "n",
        "variant": "keep",
        "weights": "keep",
        "source": "",
        "license": "",
        "components": {name: copy.deepcopy(component) for name in manifests.COMPONENTS},
        "shards": shards,
        "text": {
            "tokenizer": "tokenizer",
            "prefix": "",
            "suffix": "",
            "length": 8,
            "pad_id": 0,
            "layers": [1],
            "features": 8,
            "rotary": {},
        },
        "latents": {"channels": 16, "downscale": 16},
        "denoiser": {"rotary": {}, "timestep_features": 256},
        "modulation": {"sigmas": [1.0, 0.5], "table": "table", "width": 6},
        "schedule": {"steps": 4},
        "sizes": {"multiple": 16, "minimum": 16, "maximum": 32, "default": [16, 16], "presets": []},
    }


def test_manifest_comes_back_as_written(tmp_path):
    manifest = small_manifest(tmp_path)
    manifests.dump(manifest, tmp_path)
    assert manifests.load(tmp_path) == manifest


def put(*path_and_value):
    """An edit that sets manifest[path…] = value, or deletes it for the value `del`."""
    *path, value = path_and_value

    def edit(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        if value == "del":
            del manifest[path[-1]]
        else:
            manifest[path[-1]] = value

    return edit


CODES = ("components", "denoiser", "tensors", "codes")
TRITS = ("components", "denoiser", "tensors", "w.trits")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("format", 3), "written by a newer Bitbrush"),
        (put("format", "1"), "expected format 2, found '1'"),
        (put("format", 0), "expected format 2, found 0"),
        (put("format", 1), "written by an older Bitbrush"),
        (put("format", "del"), "found None"),
        (put("shards", "del"), "expected key shards"),
        (put("text", "length", "del"), "expected key text.length"),
        (put("text", "length", "long"), "expected text.length as int"),
        (put("text", "tokenizer", "../x"), "text.tokenizer"),
        (put("text", []), "text"),
        (put("weights", "octal"), "found 'octal'"),
        (put("modulation", "del"), "expected key modulation"),
        (put("modulation", "sigmas", ["1"]), "modulation.sigmas as numbers"),
        (put("modulation", "sigmas", [1.0]), "expected table as F32 [1, 6] in the denoiser, found F32 [2, 6]"),
        (put("modulation", "table", "none"), "expected none as F32 [2, 6] in the denoiser, found nothing"),
        (put("modulation", "table", "codes"), "found U32"),
        (put("components", "decoder", "del"), "found no decoder"),
        (put("components", "decoder", "graph", "../../x.onnx"), "components.decoder.graph"),
        (put("shards", 0, "file", "../../etc/passwd"), "expected shards/SHA-256.safetensors"),
        (put("shards", 0, "sha256", "0" * 64), "expected shards/SHA-256.safetensors"),
        (put(*CODES, "parts", 0, "shard", 7), "in one of 1 shards, found shard 7"),
        (put(*CODES, "parts", 0, "shard", -1), "found shard -1"),
        (put(*CODES, "parts", 0, "offset", 10**9), "inside its shard"),
        (put(*CODES, "parts", 0, "offset", -8), "inside its shard"),
        (put(*CODES, "parts", []), "at least one part"),
        (put(*CODES, "shape", [9, 4]), "expected components.denoiser.tensors.codes.parts of 144 bytes"),
        (put(*CODES, "shape", [-8, -4]), "shape"),
        (put(*CODES, "dtype", "F64"), "dtype among U32, F16, F32, U8"),
        (put(*TRITS, "expands_to", "del"), "w.trits.expands_to with dtype U8 and no other, found none with U8"),
        (put(*CODES, "expands_to", {"name": "x", "shape": [4, 8]}), "with dtype U8 and no other, found one with U32"),
        (put(*TRITS, "expands_to", {"name": "x"}), "expected key components.denoiser.tensors.w.trits.expands_to.shape"),
        (put(*TRITS, "expands_to", "name", 3), "expands_to.name as str"),
        (put(*TRITS, "expands_to", "name", "codes"), "expected one tensor called codes"),
        (put(*TRITS, "expands_to", "shape", [64]), "expands_to.shape as two sizes"),
        (put(*TRITS, "expands_to", "shape", [66, 1]), "shape [14, 16] for codes [66, 1], found [13, 16]"),
        (put(*TRITS, "shape", [16, 13]), "shape [13, 16] for codes [8, 8]"),
    ],
)
def test_manifest_that_cannot_be_used_is_refused_in_one_line(tmp_path, edit, words):
    manifest = small_manifest(tmp_path)
    edit(manifest)
    manifests.dump(manifest, tmp_path)
    with pytest.raises(BadBundle) as caught:
        manifests.load(tmp_path)
    message = str(caught.value)
    assert "manifest.json: expected" in message and words in message and "\n" not in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000])
def test_manifest_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BadBundle, match="manifest.json: expected"):
        manifests.load(tmp_path)


def test_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(BadBundle, match="expected manifest.json of a bundle"):
        manifests.load(tmp_path)
    with pytest.raises(BadBundle, match="found nothing"):
        manifests.load(tmp_path / "missing")
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(BadBundle, match="found a file"):
        manifests.load(tmp_path / "file")
