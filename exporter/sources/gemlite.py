"""gemlite packs: `state_dict.pt`, one flat dict of `torch.save` with five or more tensors for each packed linear b.

    b.W_q               uint8, int16, int32 or int64 [K/e, N]   e codes to an element, lowest bits first
    b.scales, b.zeros   F32, F16 or BF16 [K/128, N]
    b.metadata          int32 [12]   see METADATA
    b.orig_shape        int32 [2]    N, K
    b.meta_scale        not used by the kind of scaling that is read here

A value is code · scale + zero (W_group_mode 4). Binary packs (1 bit) hold scale 2s and zero −s, ternary
ones (2 bits) scale s and zero −s with codes 0..2. Elements are little-endian and codes run along K, so the
bytes of W_q's columns are the bundle's words as they are. All other tensors are dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.packing import GROUP, affine_values
from exporter.sources.low_bit import KINDS, low_bit
from exporter.sources.source import Given
from exporter.sources.torch_pack import TorchPack
from exporter.sources.torch_pickle import TorchTensor
from exporter.sources.torch_zip import TorchArchive
from exporter.tensorfile import DTYPES

METADATA = [
    *("scaled_activations", "bits", "group_size", "mask", "elements_per_sample"),
    *("input_dtype", "output_dtype", "acc_dtype", "meta_dtype"),
    *("channel_scale_mode", "W_group_mode", "contiguous"),
]
GROUP_MODES = {
    0: "code",
    1: "code - zero",
    2: "code * scale",
    3: "(code - zero) * scale",
    4: "code * scale + zero",
}
ELEMENTS = ("U8", "I16", "I32", "I64")
NUMBERS = ("F32", "F16", "BF16")
NEEDED = ("W_q", "scales", "zeros", "metadata", "orig_shape")


@dataclass(frozen=True)
class _Linear:
    """A packed matrix: its size, bits per code and where its tensors lie."""

    rows: int
    columns: int
    bits: int
    codes: TorchTensor
    scales: TorchTensor
    zeros: TorchTensor


def open_gemlite(path: Path, label: str) -> GemlitePack:
    """Open a `state_dict.pt`, called `label` in messages.

    Opening reads and checks the metadata of every packed matrix. Raises BadCheckpoint.
    """
    return GemlitePack(TorchArchive(path, label))


class GemlitePack(TorchPack):
    """The tensors of a gemlite pack, packed matrices as `b.weight`; a `Source`."""

    def __init__(self, archive: TorchArchive) -> None:
        super().__init__(archive)
        tensors = _flat(archive)
        bases = [name.removesuffix(".W_q") for name in tensors if name.endswith(".W_q")]
        hidden = {f"{base}.{part}" for base in bases for part in (*NEEDED, "meta_scale")}
        self._dense = {name: tensor for name, tensor in tensors.items() if name not in hidden}
        for name in self._dense:
            base, _, part = name.rpartition(".")
            if part in NEEDED:
                raise archive.bad_tensor(name, f"{base}.W_q beside it", "none")
        self._linears = {f"{base}.weight": self._linear(base, tensors) for base in bases}
        for name in self._linears:
            if name in self._dense:
                raise archive.bad_tensor(name, "a matrix either packed or dense", "both")

    def given(self, name: str) -> Given | None:
        """A packed matrix as it is, checked to be binary or ternary.

        None if float16 does not hold the scales exactly.
        """
        if name not in self._linears:
            return None
        return low_bit(
            self._linears[name].bits,
            self._words(name),
            *self._numbers(name),
            ("zero", "zeros", "words of 32 bits"),
            lambda expected, found: self._archive.bad_tensor(name, expected, found),
        )

    def _matrix(self, name: str) -> np.ndarray:
        return affine_values(self._words(name), self._linears[name].bits, *self._numbers(name), GROUP)

    def _words(self, name: str) -> np.ndarray:
        """u32[N, K · bits / 32]"""
        columns = np.ascontiguousarray(self._archive.read(self._linears[name].codes, name).T)
        return columns.view(np.uint8).view("<u4").astype(np.uint32, copy=False)

    def _numbers(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """f32[N, K/128] scales and zeros, checked to be finite."""
        scales, zeros = (np.ascontiguousarray(self._finite(name, part).T) for part in ("scales", "zeros"))
        return scales, zeros

    def _linear(self, base: str, tensors: dict[str, TorchTensor]) -> _Linear:
        """Check the tensors of one packed matrix against its metadata and each other."""
        name = f"{base}.weight"
        for part in NEEDED:
            if f"{base}.{part}" not in tensors:
                raise self._archive.bad_tensor(name, f"{base}.{part} beside {base}.W_q", "none")
        codes, scales, zeros, metadata, size = (tensors[f"{base}.{part}"] for part in NEEDED)
        facts = dict(zip(METADATA, self._integers(f"{base}.metadata", metadata, len(METADATA)), strict=True))
        rows, columns = self._integers(f"{base}.orig_shape", size, 2)
        self._check_metadata(name, facts)
        bits = facts["bits"]
        if codes.dtype not in ELEMENTS:
            raise self._archive.bad_tensor(name, f"W_q among {', '.join(ELEMENTS)}", codes.dtype)
        per_element = DTYPES[codes.dtype].itemsize * 8 // bits
        if facts["elements_per_sample"] != per_element:
            raise self._archive.bad_tensor(
                name,
                f"{per_element} codes of {bits} bits in each {codes.dtype}",
                f"{facts['elements_per_sample']} in its metadata",
            )
        if rows < 1 or columns < 1 or columns % GROUP:
            raise self._archive.bad_tensor(name, f"orig_shape [N, K] with K a multiple of {GROUP}", [rows, columns])
        wanted = {"W_q": (codes, columns // per_element), "scales": (scales, columns // GROUP)}
        for part, (tensor, count) in {**wanted, "zeros": (zeros, columns // GROUP)}.items():
            if tensor.shape != (count, rows):
                raise self._archive.bad_tensor(name, f"{part} of shape {[count, rows]}", list(tensor.shape))
            if part != "W_q" and tensor.dtype not in NUMBERS:
                raise self._archive.bad_tensor(name, f"{part} among {', '.join(NUMBERS)}", tensor.dtype)
        return _Linear(rows, columns, bits, codes, scales, zeros)

    def _check_metadata(self, name: str, facts: dict[str, int]) -> None:
        """Refuse every way of packing but the one that is read here, by its number and meaning."""
        if facts["bits"] not in KINDS:
            raise self._archive.bad_tensor(name, "codes of 1 or 2 bits", f"{facts['bits']} bits")
        mode = facts["W_group_mode"]
        if mode != 4:
            meaning = GROUP_MODES.get(mode, "of unknown meaning")
            raise self._archive.bad_tensor(name, f"W_group_mode 4 ({GROUP_MODES[4]})", f"mode {mode} ({meaning})")
        wanted = {"group_size": GROUP, "mask": 2 ** facts["bits"] - 1, "channel_scale_mode": 0}
        for key, value in wanted.items():
            if facts[key] != value:
                raise self._archive.bad_tensor(name, f"{key} {value} in its metadata", facts[key])

    def _integers(self, name: str, tensor: TorchTensor, count: int) -> list[int]:
        if tensor.dtype not in ("I32", "I64") or tensor.shape != (count,):
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise self._archive.bad_tensor(name, f"{count} integers", found)
        return self._archive.read(tensor, name).tolist()


def _flat(archive: TorchArchive) -> dict[str, TorchTensor]:
    if not isinstance(archive.root, dict):
        raise archive.bad(f"expected a dict of tensors, found {type(archive.root).__name__}")
    for name, tensor in archive.root.items():
        if not isinstance(name, str) or not isinstance(tensor, TorchTensor):
            raise archive.bad_tensor(str(name), "a tensor under a name", type(tensor).__name__)
    return dict(archive.root)
