"""MLX packs: safetensors files in which a matrix is a triple of words, scales and biases.

    X.weight            U32  [N, K·bits/32]   codes, a little-endian stream of bits along K
    X.scales, X.biases  BF16, F16 or F32  [N, K/group]

A value is code · scale + bias. Binary packs (1 bit) hold scale 2s and bias −s, ternary ones (2 bits) scale
s and bias −s with codes 0..2; 4 bits are affine, with scales of either sign. Words and groups lie as in
the bundle, so packed matrices pass through as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.errors import BadCheckpoint
from exporter.jsonfile import read_json
from exporter.packing import AFFINE_GROUPS, GROUP, affine_values, exact_f16
from exporter.sources.low_bit import KINDS, low_bit
from exporter.sources.safetensors_files import SafetensorsFiles
from exporter.sources.source import Given

BITS = (1, 2, 4)
NUMBERS = ("BF16", "F16", "F32")
WORD = ".weight"
# Groups of the published packs. Shapes alone tell bits · group, so one of the two must be known.
GROUPS = {"transformer": GROUP, "text_encoder": 64, "vae": 64}


def has_packed_words(files: SafetensorsFiles) -> bool:
    """Whether any `X.weight` is made of 32-bit words: floating-point checkpoints have none."""
    return any(name.endswith(WORD) and files.entry(name).dtype == "U32" for name in files.names())


@dataclass(frozen=True)
class _Layout:
    """How a matrix is packed: bits per code, values per scale along K."""

    bits: int
    group: int


class MlxPack:
    """The tensors of an MLX pack, packed matrices under their dense names; a `Source`.

    Args:
        files: what the pack is stored in.
        folder: of the component; its quantization_config.json or config.json records the bits.
        component: transformer, text_encoder or vae.

    Opening checks the shapes of all packed matrices. Raises BadCheckpoint.
    """

    def __init__(self, files: SafetensorsFiles, folder: Path, component: str) -> None:
        self._files = files
        record, where = _record(folder)
        names = files.names()
        packed = [name for name in names if name.endswith(WORD) and files.entry(name).dtype == "U32"]
        self._layouts = {name: self._layout(name, record, where, GROUPS[component]) for name in packed}
        hidden = {_sibling(name, part) for name in packed for part in ("scales", "biases")}
        self._names = [name for name in names if name not in hidden]

    def names(self) -> list[str]:
        """Names of all tensors, sorted; scales and biases belong to their matrix."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [N, K] for packed matrices."""
        rows_and_words = self._files.shape(name)
        if name not in self._layouts:
            return rows_and_words
        return (rows_and_words[0], rows_and_words[1] * 32 // self._layouts[name].bits)

    def label(self, name: str) -> str:
        """Folder and name of the file that holds a tensor."""
        return self._files.label(name)

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as f32; packed ones as code · scale + bias."""
        if name not in self._layouts:
            return self._files.tensor(name)
        layout = self._layouts[name]
        return affine_values(self._files.read(name), layout.bits, *self._numbers(name), layout.group)

    def given(self, name: str) -> Given | None:
        """A packed matrix as it is; binary and ternary ones are checked to be of that form.

        None if float16 does not hold the scales or biases exactly.
        """
        if name not in self._layouts:
            return None
        layout, words, (scales, biases) = self._layouts[name], self._files.read(name), self._numbers(name)
        words = words.astype(np.uint32, copy=False)
        if layout.bits == 4:
            halves = {".scales": exact_f16(scales), ".offsets": exact_f16(biases)}
            if layout.group not in AFFINE_GROUPS or any(half is None for half in halves.values()):
                return None
            return Given("int4", layout.group, {".codes": words, **halves})
        if layout.group != GROUP:
            raise self._bad(name, f"expected groups of {GROUP} for {KINDS[layout.bits]}, found {layout.group}")
        return low_bit(
            layout.bits,
            words,
            scales,
            biases,
            ("bias", "biases", "words"),
            lambda expected, found: self._bad(name, f"expected {expected}, found {found}"),
        )

    def _numbers(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """f32[N, K/group] scales and biases, checked to be finite."""
        found = []
        for part in ("scales", "biases"):
            values = self._files.tensor(_sibling(name, part))
            if not np.isfinite(values).all():
                raise self._bad(name, f"expected finite {part}, found {values[~np.isfinite(values)][0]}")
            found.append(values)
        return found[0], found[1]

    def _layout(self, name: str, record: tuple[int, int] | None, where: str, group: int) -> _Layout:
        """Bits and group of a matrix, by its shapes and what is recorded of the pack."""
        entry, known = self._files.entry(name), set(self._files.names())
        for part in ("scales", "biases"):
            sibling = _sibling(name, part)
            if sibling not in known:
                raise self._bad(name, f"expected {sibling} beside its packed words, found none")
            beside = self._files.entry(sibling)
            if beside.dtype not in NUMBERS:
                raise self._bad(name, f"expected {part} among {', '.join(NUMBERS)}, found {beside.dtype}")
            if len(beside.shape) != 2 or len(entry.shape) != 2 or beside.shape[0] != entry.shape[0]:
                raise self._bad(
                    name, f"expected a row of {part} for each of words, found {list(beside.shape)}, {list(entry.shape)}"
                )
        scales, biases = (self._files.shape(_sibling(name, part)) for part in ("scales", "biases"))
        if scales != biases:
            raise self._bad(name, f"expected scales and biases of one shape, found {list(scales)} and {list(biases)}")
        # A row of W words has 32·W bits, and as many groups as scales.
        bits = 32 * entry.shape[1] / scales[1] if scales[1] else 0
        if record is not None:
            if bits != record[0] * record[1]:
                raise self._bad(
                    name,
                    f"expected {record[0]} bits in groups of {record[1]} as {where} says, found {bits:g} bits a group",
                )
            return _Layout(*record)
        if bits / group not in BITS:
            raise self._bad(name, f"expected 1, 2 or 4 bits in groups of {group}, found {bits:g} bits a group")
        return _Layout(int(bits) // group, group)

    def _bad(self, name: str, message: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self._files.label(name)}: tensor {name}: {message}")


def _sibling(name: str, part: str) -> str:
    return f"{name.removesuffix(WORD)}.{part}"


def _record(folder: Path) -> tuple[tuple[int, int] | None, str]:
    """((bits, group), file that says so), or (None, "") where the pack's configs say nothing."""
    for file, keys in (("quantization_config.json", None), ("config.json", ("quantization", "quantization_config"))):
        label = f"{folder.name}/{file}"
        if not (folder / file).is_file():
            continue
        config = read_json(folder / file, label)
        found = config if keys is None else next((config[key] for key in keys if key in config), None)
        if not isinstance(found, dict) or not {"bits", "group_size"} <= set(found):
            continue
        bits, group = found["bits"], found["group_size"]
        if type(bits) is not int or bits not in BITS:
            raise BadCheckpoint(f"{label}: expected bits 1, 2 or 4, found {bits!r}")
        if type(group) is not int or group < 1:
            raise BadCheckpoint(f"{label}: expected group_size as a whole number, found {group!r}")
        return (bits, group), label
    return None, ""
