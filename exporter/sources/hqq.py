"""HQQ packs: `qmodel.pt`, a dict of `torch.save` from module names to dicts.

A quantised linear has W_q, scale, zero, nbits, group_size, shape, axis, packing and some flags; other modules
have their plain tensors (`weight`, `bias`). Read here: 4 bits, "4bit_u8", groups along K (axis 1).

    W_q          uint8 [G/2, group]   G = N · K / group groups in row order; the byte (i, j) holds value j of
                                      group i in its high half and of group G/2 + i in its low half
    scale, zero  F16, BF16 or F32 [G, 1]

A value is (code − zero) · scale, the bundle's code · scale + offset with offset −zero · scale. Codes and
scales are passed through as they are. Zeros of real packs are fractions, so float16 seldom holds the products
exactly: they are rounded to it, and what that costs is measured and reported with the tensor. Matrices with
scales that float16 does not hold come out as f32 values only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.packing import AFFINE_GROUPS, exact_f16
from exporter.sources.source import Given
from exporter.sources.torch_pack import TorchPack
from exporter.sources.torch_pickle import TorchTensor, is_count
from exporter.sources.torch_zip import TorchArchive

NUMBERS = ("F32", "F16", "BF16")
# What a quantised module must say, and what it must not have switched on.
FIXED = {"nbits": 4, "axis": 1, "packing": "4bit_u8"}
OFF = ("view_as_float", "quant_scale", "quant_zero", "encoded_state_dict")
_BLOCK_GROUPS = 1 << 14  # errors are summed over blocks of so many groups, to bound memory


@dataclass(frozen=True)
class _Linear:
    """A quantised matrix: its size, values per scale and where its tensors lie."""

    rows: int
    columns: int
    group: int
    codes: TorchTensor
    scale: TorchTensor
    zero: TorchTensor


def open_hqq(path: Path, label: str) -> HqqPack:
    """Open a `qmodel.pt`, called `label` in messages.

    Opening checks what every quantised module says of itself. Raises BadCheckpoint.
    """
    return HqqPack(TorchArchive(path, label))


class HqqPack(TorchPack):
    """The tensors of an HQQ pack, quantised matrices as `MODULE.weight`; a `Source`."""

    def __init__(self, archive: TorchArchive) -> None:
        super().__init__(archive)
        if not isinstance(archive.root, dict):
            raise archive.bad(f"expected a dict of modules, found {type(archive.root).__name__}")
        for module, parts in archive.root.items():
            if not isinstance(module, str) or not isinstance(parts, dict):
                raise archive.bad_tensor(str(module), "a module's dict under its name", type(parts).__name__)
            if "W_q" in parts:
                self._add(self._linears, f"{module}.weight", self._linear(f"{module}.weight", parts))
                # The rest of a quantised module is settings; only a bias is a tensor of the model.
                parts = {"bias": parts["bias"]} if parts.get("bias") is not None else {}
            for key, tensor in parts.items():
                name = f"{module}.{key}"
                if not isinstance(tensor, TorchTensor):
                    raise archive.bad_tensor(name, "a tensor", type(tensor).__name__)
                self._add(self._dense, name, tensor)

    def _matrix(self, name: str) -> np.ndarray:
        scale, zero = self._numbers(name)
        return _values(self._codes(name), scale, zero).reshape(self.shape(name))

    def given(self, name: str) -> Given | None:
        """A quantised matrix with the codes and scales that it has, and offsets rounded to float16.

        None if float16 does not hold a scale exactly or if an offset is beyond its range.
        """
        if name not in self._linears:
            return None
        linear, (scale, zero) = self._linears[name], self._numbers(name)
        # Products of float32 values are exact in float64, so this rounds once; 0 − 0 makes −0 a plain 0.
        with np.errstate(over="ignore"):
            offsets = (0.0 - zero.astype(np.float64) * scale).astype(np.float16)
        scales = exact_f16(scale)
        if scales is None or not np.isfinite(offsets).all():
            return None
        codes = self._codes(name)
        error = _relative_error(codes, scale, zero, offsets)
        groups = (linear.rows, linear.columns // linear.group)
        codes = codes.reshape(linear.rows, linear.columns)
        words = (codes[:, ::2] | codes[:, 1::2] << np.uint8(4)).view("<u4").astype(np.uint32, copy=False)
        parts = {".codes": words, ".scales": scales.reshape(groups), ".offsets": offsets.reshape(groups)}
        return Given("int4", linear.group, parts, error)

    def _codes(self, name: str) -> np.ndarray:
        """u8[G, group]"""
        packed = self._archive.read(self._linears[name].codes, name)
        codes = np.empty((2 * len(packed), packed.shape[1]), np.uint8)
        np.right_shift(packed, 4, out=codes[: len(packed)])
        np.bitwise_and(packed, 15, out=codes[len(packed) :])
        return codes

    def _numbers(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """f32[G, 1] scale and zero, checked to be finite."""
        return self._finite(name, "scale"), self._finite(name, "zero")

    def _add(self, to: dict, name: str, item: TorchTensor | _Linear) -> None:
        if name in self._dense or name in self._linears:
            raise self._archive.bad_tensor(name, "it once", "it twice")
        to[name] = item

    def _linear(self, name: str, parts: dict) -> _Linear:
        """Check what a quantised module says of itself."""
        for key, value in FIXED.items():
            if type(parts.get(key)) is not type(value) or parts[key] != value:
                raise self._archive.bad_tensor(name, f"{key} {value}", _said(parts, key))
        for key in OFF:
            if parts.get(key, False) is not False:
                raise self._archive.bad_tensor(name, f"{key} False", _said(parts, key))
        group, shape = parts.get("group_size"), parts.get("shape")
        if type(group) is not int or group not in AFFINE_GROUPS:
            allowed = ", ".join(map(str, sorted(AFFINE_GROUPS)))
            raise self._archive.bad_tensor(name, f"group_size among {allowed}", _said(parts, "group_size"))
        fine = isinstance(shape, tuple) and len(shape) == 2 and all(map(is_count, shape))
        if not fine or not all(shape) or shape[1] % group or math.prod(shape) // group % 2:
            found = list(shape) if isinstance(shape, tuple) else _said(parts, "shape")
            raise self._archive.bad_tensor(name, f"a shape [N, K] of an even number of groups of {group}", found)
        groups = math.prod(shape) // group
        wanted = {
            "W_q": (("U8",), (groups // 2, group)),
            "scale": (NUMBERS, (groups, 1)),
            "zero": (NUMBERS, (groups, 1)),
        }
        for key, (dtypes, size) in wanted.items():
            tensor = parts.get(key)
            if not isinstance(tensor, TorchTensor):
                raise self._archive.bad_tensor(name, f"{key} to be a tensor", _said(parts, key))
            if tensor.dtype not in dtypes or tensor.shape != size:
                found = f"{tensor.dtype} {list(tensor.shape)}"
                raise self._archive.bad_tensor(name, f"{key} {' or '.join(dtypes)} {list(size)}", found)
        return _Linear(*shape, group, parts["W_q"], parts["scale"], parts["zero"])


def _values(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """u8[G, group] codes, f32[G, 1] scale and zero -> f32[G, group], in the order in which hqq computes."""
    values = codes.astype(np.float32)
    values -= zero
    values *= scale
    return values


def _relative_error(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, offsets: np.ndarray) -> float:
    """‖code · scale + offset − value‖ / ‖value‖ over a matrix, both as computed in f32; 0 only if all are equal.

    Without the division if all values are 0.
    """
    error, norm = 0.0, 0.0
    for start in range(0, len(codes), _BLOCK_GROUPS):
        span = slice(start, start + _BLOCK_GROUPS)
        values = _values(codes[span], scale[span], zero[span])
        given = codes[span] * scale[span] + offsets[span].astype(np.float32)
        error += float(np.sum(np.square(given - values, dtype=np.float64)))
        norm += float(np.sum(np.square(values, dtype=np.float64)))
    return (error / norm) ** 0.5 if norm else error**0.5


def _said(parts: dict, key: str) -> str:
    """What a module says under `key`, for a message."""
    value = parts.get(key)
    plain = isinstance(value, int | float | str | None)
    return "none" if key not in parts else str(value) if plain else type(value).__name__
