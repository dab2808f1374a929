"""Archives of torch.save: tensors of every layout, nothing of the pickle executed, one line for every damage."""

import builtins
import os
import random
import re
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.errors import BadCheckpoint
from exporter.sources.torch_zip import TorchArchive
from tests.torch_files import LABEL, Call, pickled_call, plain, refusal, rewrite, save

NUMPY = {torch.bfloat16: torch.uint16}  # how numpy sees the bits


@pytest.fixture
def path(tmp_path) -> Path:
    """A sound archive: 16 numbers, the last twelve of them as [3, 4]."""
    return save(tmp_path / "file.pt", {"t": torch.arange(16.0)[4:].view(3, 4)})


def edit_pickle(path: Path, old: bytes, new: bytes) -> Path:
    """Replace the only `old` in an archive's pickle."""
    with zipfile.ZipFile(path) as archive:
        data = archive.read("file/data.pkl")
    assert data.count(old) == 1
    return rewrite(path, {"data.pkl": data.replace(old, new)})


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
    + [torch.uint8, torch.bool],
)
def test_tensors_of_every_layout_come_back_bit_for_bit(tmp_path, dtype):
    whole = (torch.randn(4, 6, 10) * 50).to(dtype)
    views = {
        "whole": whole,
        "transposed": whole.permute(2, 0, 1),
        "columns": whole[1:3, :, 3:7],
        "every third": whole[:, ::3, ::2],
        "one": whole[2, 3, 4],
        "thin": whole[:, 2:3],
        "thin transposed": whole[:, 2:3].permute(1, 2, 0),
        "empty": whole[:, :0],
    }
    path = save(tmp_path / "file.pt", {"views": views, "list": [whole, (whole, 3)]})
    archive = TorchArchive(path, LABEL)
    assert archive.root["list"][0] == archive.root["list"][1][0]
    for name, view in views.items():
        record = archive.root["views"][name]
        found, expected = archive.read(record, name), view.view(NUMPY.get(dtype, dtype)).numpy()
        assert record.shape == found.shape == tuple(view.shape) and found.flags.c_contiguous, name
        assert found.dtype == expected.dtype and np.array_equal(found, expected), name
        if dtype.is_floating_point:
            assert np.array_equal(archive.read_f32(record, name), view.float().numpy()), name


def test_plain_data_comes_back(tmp_path):
    data = {
        "numbers": [1, 2.5, True, None, 1 << 70, 2j],
        "sets": ({1, 2}, frozenset("ab")),
        "size": torch.Size([2, 3]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    path = save(tmp_path / "file.pt", data | {"dtype": torch.bfloat16, "device": torch.device("cpu")})
    root = TorchArchive(path, LABEL).root
    assert {key: root[key] for key in ("numbers", "sets")} == {key: data[key] for key in ("numbers", "sets")}
    assert root["size"] == (2, 3) and root["parameter"].shape == (2,) and root["dtype"] == "torch.bfloat16"


def test_reading_takes_memory_for_one_tensor_and_imports_no_torch(tmp_path):
    tensors = {str(i): torch.ones(512, 512) for i in range(16)} | {"half": torch.ones(3000, 1000).bfloat16()}
    path = save(tmp_path / "state_dict.pt", tensors)
    assert path.stat().st_size > 22e6
    tracemalloc.start()
    archive = TorchArchive(path, LABEL)
    assert archive.read(archive.root["7"], "7").sum() == 512 * 512
    assert tracemalloc.get_traced_memory()[1] < 2.5e6
    archive.read_f32(archive.root["half"], "half")
    assert tracemalloc.get_traced_memory()[1] < 42e6  # 12 MB of f32, and blocks of 4M values at most
    tracemalloc.stop()
    code = (
        "import sys; from pathlib import Path; from exporter.sources.gemlite import open_gemlite;"
        "import exporter.sources.hqq; source = open_gemlite(Path(sys.argv[1]), 'x'); source.tensor('3');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("place", ["root", "key", "shape"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (subprocess.check_output, "commands.check_output"),
        (builtins.eval, "__builtin__.eval"),
        (builtins.exec, "__builtin__.exec"),
        (builtins.getattr, "__builtin__.getattr"),
        (torch.load, "torch.serialization.load"),
        (torch.storage._load_from_bytes, "torch.storage._load_from_bytes"),
        (torch.hub.load_state_dict_from_url, "torch.hub.load_state_dict_from_url"),
    ],
)
def test_calls_in_a_pickle_are_refused_by_name_and_not_run(tmp_path, function, name, place):
    mark = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    call = Call(function, f"touch {mark}" if function in (os.system, subprocess.check_output) else code)
    data = {"root": call, "key": {"a": [1, (call,)]}, "shape": {"t": torch.ones(3), "shape": {"deep": call}}}[place]
    path = save(tmp_path / "file.pt", data)
    message = rf"only tensors and plain data, found a call of {name} \(not run\)$"
    refusal(message, TorchArchive, path)
    assert not mark.exists()
    if function in (os.system, builtins.eval, builtins.exec):
        torch.load(path, weights_only=False)
        assert mark.exists()  # what was refused would have run


@pytest.mark.parametrize(
    "full",
    ["os.system", "builtins.eval", "importlib.import_module", "collections.Counter", "torch._utils._rebuild_tensor"]
    + ["torch.load", "exporter.sources.torch_pickle.STORAGES", "no_such_module.name\x1b[2J"],
)
def test_names_in_a_pickle_are_refused_without_looking_them_up(path, full):
    rewrite(path, {"data.pkl": pickled_call(*full.rsplit(".", 1), "true")})
    shown = re.escape(full.replace("\x1b", "?"))
    refusal(rf"found a call of {shown} \(not run\)$", TorchArchive, path)


def test_state_set_on_what_a_pickle_made_or_may_call_is_refused(path):
    with zipfile.ZipFile(save(path, torch.arange(3.0))) as archive:
        tensor = archive.read("file/data.pkl").removesuffix(b".")
    name = b"X\x06\x00\x00\x00offset"
    for state in (b"}" + name + b"K\x09sb.", b"N}" + name + b"K\x09s\x86b."):
        refusal("found: .*attribute", TorchArchive, rewrite(path, {"data.pkl": tensor + state}))
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x09\x00\x00\x00_functionctorch\nSize\nsb."
    refusal("found: state set on a function$", TorchArchive, rewrite(path, {"data.pkl": data}))


# The archive's pickle has, for [3, 4] of 16 values: offset 4, shape (3, 4), stride (4, 1).
VIEW = b"K\x04K\x03K\x04\x86q\x08K\x04K\x01\x86"
BAD_VIEWS = [
    (5, (3, 4), (4, 1), r"16 values, found shape \[3, 4\], stride \[4, 1\], offset 5$"),
    (1 << 40, (0, 4), (4, 1), "offset 1099511627776$"),
    (-1, (3, 4), (4, 1), r"offset, shape and stride, found .*, -1, \[3, 4\], \[4, 1\]$"),
    (4, (4, 4), (4, 1), r"found shape \[4, 4\]"),
    (4, (3, 4), (6, 1), r"stride \[6, 1\]"),
    (4, (3, 4), (-4, 1), r"stride, found .*\[-4, 1\]$"),
    (4, (65535, 4), (0, 1), r"found shape \[65535, 4\], stride \[0, 1\]"),
    (0, (0, 1 << 62), (4, 1), r"found shape \[0, 4611686018427387904\]"),
    (4, (3, 4), (4,), r"stride, found .*, \[3, 4\], \[4\]$"),
    (4, (3, 4), (4, 1.0), r"stride, found .*\[4, 1\.0\]$"),
    (4, (3, True), (4, 1), r"stride, found .*\[3, True\]"),
    (4, (3, 4), None, "stride, found .*, None$"),
]


@pytest.mark.parametrize(("offset", "shape", "stride", "message"), BAD_VIEWS)
def test_view_beyond_its_storage_is_refused(path, offset, shape, stride, message):
    refusal(message, TorchArchive, edit_pickle(path, VIEW, plain(offset) + plain(shape) + plain(stride)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x10t", b"K\x11t", "storage 0: expected 68 bytes for 17 F32, found 64$"),
        (b"FloatStorage", b"ByteStorage", "storage 0: expected 16 bytes for 16 U8, found 64$"),
        (b"FloatStorage", b"QInt8Storage", r"found a call of torch\.QInt8Storage \(not run\)$"),
        (b"ctorch\nFloatStorage\n", b"X\x02\x00\x00\x00C9", "storage 0: expected a known type, found C9$"),
        (b"ctorch\nFloatStorage\n", b"K\x07", "expected a storage's type, key and size, found .*7, '0', 'cpu', 16"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007", "expected the entry file/data/7 in the archive, found none$"),
        (b"X\x01\x00\x00\x000", b"X\x06\x00\x00\x00../../", r"expected the entry file/data/\.\./\.\./ in the archive"),
        (b"X\x07\x00\x00\x00storage", b"X\x06\x00\x00\x00module", "expected a storage's type, key and size, found"),
        (b"\x80\x02}", b"\x80\x02r\xff\xff\xff\xff}", "found: a memo of 4294967295 places$"),
        (b"\x80\x02}", b"\x80\x02\x8e" + b"\x00\xff" * 4, "expected a pickle of tensors and plain data, found: "),
    ],
)
def test_damaged_reference_is_refused(path, old, new, message):
    refusal(message, TorchArchive, edit_pickle(path, old, new))


def test_file_that_torch_does_not_write_is_refused(tmp_path):
    path = tmp_path / "file.pt"
    refusal("expected a readable file, found: No such file or directory$", TorchArchive, path)
    path.write_bytes(b"")
    refusal("expected a zip archive of torch.save, found: File is not a zip file", TorchArchive, path)
    torch.save({"t": torch.arange(16.0)}, path, _use_new_zipfile_serialization=False)
    refusal("expected a zip archive of torch.save, found: .*another format", TorchArchive, path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"byteorder": b"big"}, "expected byte order little, found b'big'$"),
        ({"data.pkl": None}, "expected one data.pkl in the archive, found 0$"),
        ({"b/data.pkl": b""}, "expected one data.pkl in the archive, found 2$"),
        ({"data/0": None}, "expected the entry file/data/0 in the archive, found none$"),
        ({"data/0": bytes(8)}, "storage 0: expected 64 bytes for 16 F32, found 8$"),
        ({"data.pkl": b""}, "expected a pickle of tensors and plain data, found: "),
    ],
)
def test_archive_with_other_entries_is_refused(path, entries, message):
    refusal(message, TorchArchive, rewrite(path, entries))


def test_compressed_and_repeated_entries_are_refused(path):
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("file/data/0", bytes(64))
    refusal("expected every name once in the archive", TorchArchive, path)
    rewrite(path, {"byteorder": None}, zipfile.ZIP_DEFLATED)
    refusal("expected the entry file/data.pkl stored as it is, found it compressed$", TorchArchive, path)


def test_file_cut_anywhere_or_shortened_after_opening_is_refused(path):
    whole = path.read_bytes()
    archive = TorchArchive(path, LABEL)
    for size in range(1, len(whole), 37):
        path.write_bytes(whole[:size])
        refusal("truncated", TorchArchive, path)
    path.write_bytes(whole[:64])
    message = "tensor t: expected 48 bytes, found the end of the file$"
    refusal(message, lambda record: archive.read(record, "t"), archive.root["t"])


def test_damaged_bytes_give_a_refusal_or_another_tensor(path):
    whole, chance = path.read_bytes(), random.Random(0)
    start = whole.index(b"\x80\x02}")
    seen = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            first, last = (start, start + 220) if chance.random() < 0.7 else (0, len(whole))
            damaged[chance.randrange(first, last)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            archive = TorchArchive(path, LABEL)
            if isinstance(archive.root, dict) and "t" in archive.root:
                archive.read(archive.root["t"], "t")
        except BadCheckpoint as refused:
            assert str(refused).isprintable()
            seen += 1
    assert 300 < seen < 1500
