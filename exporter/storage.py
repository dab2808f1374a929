"""How one tensor of a checkpoint is stored in a bundle, and how it is got back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter import packing
from exporter.errors import BadCheckpoint
from exporter.sources.source import Given
from exporter.trits import pack_trits, trits_shape, unpack_trits

KINDS = ("binary", "ternary", "int4", "int8", "f16", "f32", "conv")
PART_SUFFIXES = (".codes", ".trits", ".scales", ".offsets")
BATCH_NORM_STD = "batch_norm_std"  # sqrt(variance + eps)
_BLOCK_VALUES = 1 << 21  # rounding errors are summed over blocks of so many values, to bound memory


@dataclass(frozen=True)
class Stored:
    """The stored parts of one tensor, by part name, and what storing them cost in accuracy."""

    parts: dict[str, np.ndarray]
    lossless: bool
    relative_error: float


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a component.

    name       of the tensor in graph and bundle; packed kinds store `name.codes`, `name.scales`, …;
               ternary has its codes as `name.trits` (trits.py)
    kind       binary, ternary, int4, int8: a packed matrix; f16: two or more axes; f32: as it is;
               conv: f16 of [out, in, height, width] stored as [out, height, width, in]
    shape      in the checkpoint
    source     name of the tensor in the checkpoint's component
    group      values per scale (packed kinds)
    transform  None, or "batch_norm_std": what is stored is sqrt(source + eps)
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    source: str
    group: int = packing.GROUP
    transform: str | None = None
    eps: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: expected a kind among {KINDS}, found {self.kind!r}")
        if self.transform not in (None, BATCH_NORM_STD):
            raise ValueError(f"{self.name}: unknown transform {self.transform!r}")
        axes = {"conv": 4, **dict.fromkeys(packing.BITS, 2)}.get(self.kind)
        if axes is not None and len(self.shape) != axes:
            raise ValueError(f"{self.name}: kind {self.kind} takes {axes} axes, found shape {self.shape}")

    @property
    def packed(self) -> bool:
        """Whether the tensor is stored as codes and scales."""
        return self.kind in packing.BITS

    def parts(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(part name, safetensors dtype, shape) in the order of storing.

        f16 and conv may come out as F32 instead, if a value exceeds float16's range.
        """
        if self.packed:
            shapes = self._packed_shapes()
            if self.kind == "ternary":
                shapes = {".trits": ("U8", trits_shape(shapes.pop(".codes")[1])), **shapes}
            return [(self.name + suffix, dtype, shape) for suffix, (dtype, shape) in shapes.items()]
        if self.kind == "conv":
            out, channels, height, width = self.shape
            return [(self.name, "F16", (out, height, width, channels))]
        return [(self.name, self.kind.upper(), self.shape)]

    def expansions(self) -> dict[str, dict[str, Any]]:
        """Part name -> {"name", "shape"} of the u32 codes that it becomes on the GPU; of trits alone."""
        if self.kind != "ternary":
            return {}
        codes = {"name": f"{self.name}.codes", "shape": list(self._packed_shapes()[".codes"][1])}
        return {f"{self.name}.trits": codes}

    def store(self, array: np.ndarray) -> Stored:
        """f32 array in the checkpoint's layout -> parts. Raises BadCheckpoint, naming the tensor."""
        if array.shape != self.shape:
            raise BadCheckpoint(f"{self.source}: expected shape {list(self.shape)}, found {list(array.shape)}")
        packing.check_finite(array, self.source)
        if self.transform is not None:
            if float(array.min(initial=0.0)) < 0:
                raise BadCheckpoint(f"{self.source}: expected variances of at least 0, found {array.min():g}")
            array = np.sqrt(array.astype(np.float64) + self.eps).astype(np.float32)
        if self.packed:
            packed = packing.pack(self.kind, array, self.group, self.source)
            return Stored(self._stored_parts(packed.parts), packed.lossless, packed.relative_error)
        if self.kind == "conv":
            array = array.transpose(0, 2, 3, 1)
        array = np.ascontiguousarray(array, np.float32)
        largest = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))
        if self.kind == "f32" or largest > packing.F16_MAX:
            return Stored({self.name: array}, True, 0.0)
        half = array.astype(np.float16)
        error = _relative_error(half.reshape(-1), array.reshape(-1))
        return Stored({self.name: half}, error == 0, error)

    def take(self, given: Given | None) -> Stored | None:
        """A matrix that the checkpoint holds packed, code for code; None if that is not how it is stored.

        The error is what the source says that float16 scales and offsets cost. Raises BadCheckpoint if the
        parts do not fit the shape.
        """
        if given is None or self.transform is not None or (given.kind, given.group) != (self.kind, self.group):
            return None
        found = [(suffix, part.dtype.itemsize, part.shape) for suffix, part in given.parts.items()]
        shapes = self._packed_shapes().items()
        expected = [(suffix, {"U32": 4, "F16": 2}[dtype], shape) for suffix, (dtype, shape) in shapes]
        if found != expected:
            raise BadCheckpoint(f"{self.source}: expected parts {expected}, found {found}")
        return Stored(self._stored_parts(given.parts), given.relative_error == 0, given.relative_error)

    def restore(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        """The parts of `store` -> f32 in the checkpoint's layout, as the GPU sees the values."""
        if self.packed:
            own = {name.removeprefix(self.name): part for name, part in parts.items() if name.startswith(self.name)}
            if self.kind == "ternary":
                own[".codes"] = unpack_trits(own.pop(".trits"), self._packed_shapes()[".codes"][1])
            return packing.unpack(self.kind, own, self.shape[1], self.group)
        array = parts[self.name].astype(np.float32)
        if self.kind == "conv":
            array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        if self.transform is not None:
            array = (np.square(array.astype(np.float64)) - self.eps).astype(np.float32)
        return array

    def _packed_shapes(self) -> dict[str, tuple[str, tuple[int, int]]]:
        return packing.part_shapes_checked(self.kind, *self.shape, self.group, self.source)

    def _stored_parts(self, parts: packing.Parts) -> dict[str, np.ndarray]:
        """Parts as packing makes them -> parts as the bundle holds them, under their names."""
        if self.kind == "ternary":
            parts = {".trits": pack_trits(parts[".codes"], self.source), ".scales": parts[".scales"]}
        return {self.name + suffix: part for suffix, part in parts.items()}


def _relative_error(rounded: np.ndarray, values: np.ndarray) -> float:
    """‖rounded − values‖ / ‖values‖ of one-dimensional arrays; 0 only if they are equal."""
    error, norm = 0.0, 0.0
    for start in range(0, len(values), _BLOCK_VALUES):
        block = values[start : start + _BLOCK_VALUES].astype(np.float64)
        error += float(np.sum(np.square(rounded[start : start + _BLOCK_VALUES] - block)))
        norm += float(np.sum(np.square(block)))
    return (error / norm) ** 0.5 if norm else 0.0


def stored_like(name: str, parts: dict[str, tuple[int, ...]], shape: tuple[int, ...]) -> StoredTensor:
    """Recognise how a tensor of the checkpoint's `shape` is stored from its parts' shapes alone.

    Args:
        name: of the tensor in the bundle.
        parts: suffix ("" for a dense tensor, ".codes", …) -> stored shape.
        shape: of the tensor in the checkpoint.

    Raises ValueError if the parts do not fit the shape.
    """
    if ".trits" in parts and ".scales" in parts and len(shape) == 2:
        rows, columns = shape
        if parts == {".trits": trits_shape((rows, columns // 16)), ".scales": (rows, columns // packing.GROUP)}:
            return StoredTensor(name, "ternary", shape, name)
    elif ".codes" in parts and ".scales" in parts and len(shape) == 2:
        columns = shape[1]
        group = columns // max(1, parts[".scales"][1])
        affine = ".offsets" in parts
        for kind, bits in packing.BITS.items():
            fits = parts[".codes"] == (shape[0], columns * bits // 32)
            if fits and kind != "ternary" and (kind in packing.AFFINE) == affine:
                return StoredTensor(name, kind, shape, name, group)
    elif set(parts) == {""}:
        if len(shape) == 4 and parts[""] == (shape[0], shape[2], shape[3], shape[1]):
            return StoredTensor(name, "conv", shape, name)
        if parts[""] == shape:
            return StoredTensor(name, "f32" if len(shape) < 2 else "f16", shape, name)
    raise ValueError(f"{name}: parts {parts} do not fit shape {shape}")
