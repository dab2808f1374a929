"""A restricted reader for the pickles inside `torch.save` archives: plain data and tensors, nothing that runs.

The pickle may name only what `_globals` lists; every other name is refused before anything is called,
and nothing is ever imported. Storages and tensors come out as records that point into the archive.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from exporter.errors import BadCheckpoint

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
TORCH_DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
]
_LARGEST = 1 << 40  # values; sizes of empty tensors have no storage that bounds them


# Named tuples: a pickle cannot give them attributes or change them once they are checked.
class Storage(NamedTuple):
    """One storage of the archive: `count` values of `dtype` (as safetensors calls it) from byte `start`."""

    dtype: str
    count: int
    start: int


class TorchTensor(NamedTuple):
    """A tensor in a storage that begins at byte `start`; `stride` and `offset` count values."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    start: int

    @property
    def contiguous(self) -> bool:
        """Whether the values lie in C order without gaps."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size > 1 and stride != step:
                return False
            step *= size
        return True


def read_pickle(data: bytes, label: str, locate: Callable[[str], tuple[int, int]], sizes: dict[str, int]) -> Any:
    """Plain data with a TorchTensor in place of each tensor. Raises BadCheckpoint, calling the file `label`.

    Args:
        locate: key of a storage -> (first byte, bytes) in the file; raises BadCheckpoint if there is none.
        sizes: bytes per value of each dtype.
    """
    try:
        # Lengths and memo places beyond the data would make the unpickler allocate them: damaged, or meant to.
        for code, argument, _ in pickletools.genops(data):
            if code.name.endswith("PUT") and argument > len(data):
                raise ValueError(f"a memo of {argument} places")
        return _Unpickler(data, label, locate, sizes).load()
    except BadCheckpoint:
        raise
    except (Exception, MemoryError) as problem:  # damaged pickles raise errors of every kind
        found = short(str(problem) or type(problem).__name__)
        raise BadCheckpoint(f"{label}: expected a pickle of tensors and plain data, found: {found}") from None


def short(value: object, limit: int = 80) -> str:
    """`value` for a message: printable, one line, at most `limit` characters."""
    if isinstance(value, tuple | list):  # one level only: nested data of a hostile file can be endless
        text = "[" + ", ".join(_leaf(item) for item in value[:10]) + (", ..." if len(value) > 10 else "") + "]"
    else:
        text = value if isinstance(value, str) else _leaf(value)
    text = "".join(char if char.isprintable() else "?" for char in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_count(value: object) -> bool:
    """Whether `value` is an integer of at least 0."""
    return type(value) is int and value >= 0


def _leaf(value: object) -> str:
    return repr(value) if isinstance(value, int | float | str | bytes | None) else type(value).__name__


class _Callable:
    """A function that a pickle may call, and cannot change: state that it sets is refused."""

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state set on a function")


class _OrderedDict(dict):
    """Stands for collections.OrderedDict; attributes (a state dict's `_metadata`) are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, label: str, locate: Callable, sizes: dict[str, int]) -> None:
        super().__init__(io.BytesIO(data))
        self._label, self._locate, self._sizes = label, locate, sizes
        plain = {"set": set, "frozenset": frozenset, "complex": complex}
        functions = {
            "collections.OrderedDict": _OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "torch.Size": tuple,
            "torch.device": lambda *_: "device",  # where a tensor once was does not matter
            **{f"builtins.{name}": kind for name, kind in plain.items()},
            **{f"__builtin__.{name}": kind for name, kind in plain.items()},
        }
        self._globals: dict[str, object] = {name: _Callable(function) for name, function in functions.items()}
        self._globals |= {f"torch.{name}": dtype for name, dtype in STORAGES.items()}
        self._globals |= {f"torch.{name}": f"torch.{name}" for name in TORCH_DTYPES}

    def find_class(self, module: str, name: str) -> object:
        """Only what is listed above; nothing is imported."""
        full = f"{module}.{name}"
        if full not in self._globals:
            raise self._bad(f"expected only tensors and plain data, found a call of {short(full)} (not run)")
        return self._globals[full]

    def persistent_load(self, pid: object) -> Storage:
        """('storage', type, key, device, number of values) -> the storage, checked against its entry's size."""
        fine = isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"
        if not fine or not isinstance(pid[1], str) or not isinstance(pid[2], str) or not is_count(pid[4]):
            raise self._bad(f"expected a storage's type, key and size, found {short(pid)}")
        _, dtype, key, _, count = pid
        if dtype not in self._sizes:
            raise self._bad(f"storage {short(key)}: expected a known type, found {short(dtype)}")
        start, size = self._locate(key)
        if size != count * self._sizes[dtype]:
            wanted = count * self._sizes[dtype]
            raise self._bad(f"storage {short(key)}: expected {wanted} bytes for {count} {dtype}, found {size}")
        return Storage(dtype, count, start)

    def _tensor(self, storage: object, offset: object, shape: object, stride: object, *_: object) -> TorchTensor:
        """A view of a storage, checked to lie inside it and to repeat nothing."""
        fine = isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)
        if not fine or len(shape) != len(stride) or not all(map(is_count, (offset, *shape, *stride))):
            raise self._bad(
                f"expected a tensor's storage, offset, shape and stride, found {short(storage)}, {short(offset)},"
                f" {short(shape)}, {short(stride)}"
            )
        values = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        outside = last >= storage.count if values else math.prod(size or 1 for size in shape) > _LARGEST
        if outside or values > storage.count or offset > storage.count:
            raise self._bad(
                f"expected a tensor within its storage of {storage.count} values, found shape {short(shape)},"
                f" stride {short(stride)}, offset {short(offset)}"
            )
        return TorchTensor(storage.dtype, shape, stride, offset, storage.start)

    def _bad(self, message: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self._label}: {message}")
