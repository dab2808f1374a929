"""Small gemlite and HQQ packs that those libraries wrote (data/make_low_bit_packs.py), and archives of torch.save."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter.errors import BadCheckpoint

DATA = Path(__file__).parent / "data"
GEMLITE = DATA / "gemlite"
HQQ = DATA / "hqq"
LABEL = "transformer/state_dict.pt"
BITS = {"binary": 1, "ternary": 2}
BASE = "transformer_blocks.0.attn.to_q"


def words_of(codes: np.ndarray, bits: int) -> np.ndarray:
    """u8[N, K] codes -> u32 words: code j of a row at bit j·bits of a little-endian stream."""
    stream = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little").view("<u4")


def values_of(kind: str, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """f32[N, K]: ±s, or −s, 0, +s."""
    signs = (2.0 * codes - 1 if kind == "binary" else codes - 1.0).astype(np.float32)
    return signs * np.repeat(scales, 128, axis=1)


def gemlite_linear(name: str, file: str) -> dict[str, torch.Tensor]:
    """The state dict, under BASE, of one linear of a pack in GEMLITE."""
    state = torch.load(GEMLITE / file)
    own = {key.removeprefix(name): value for key, value in state.items() if key.startswith(f"{name}.")}
    return {BASE + key: value for key, value in own.items()}


def gemlite_packed(kind: str, shape: tuple[int, int] = (8, 256)) -> tuple[np.ndarray, np.ndarray]:
    """(codes u8[N, K], s f32[N, K/128]) that the linears of a kind and shape were made of."""
    with np.load(GEMLITE / "packed.npz") as packed:
        name = f"{kind}.{shape[0]}x{shape[1]}"
        return packed[f"{name}.codes"], packed[f"{name}.scales"]


def hqq_unpacked(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(codes u8[N, K], values f32[N, K]) of a module of HQQ's pack, as the library unpacks it."""
    with np.load(HQQ / "values.npz") as unpacked:
        return unpacked[f"{name}.codes"], unpacked[f"{name}.values"]


def refusal(pattern: str, call: Callable, argument: object) -> None:
    """Check that a call, which opens `argument` as LABEL if it is a path, raises one fitting line of BadCheckpoint."""
    with pytest.raises(BadCheckpoint, match=pattern) as caught:
        call(argument, LABEL) if isinstance(argument, Path) else call(argument)
    message = str(caught.value)
    assert message.startswith(f"{LABEL}: ") and message.isprintable() and len(message) < 400


def save(path: Path, data: object) -> Path:
    """torch.save; the path again."""
    torch.save(data, path)
    return path


def rewrite(path: Path, change: dict[str, object], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive anew with other bytes for some entries (None: left out)."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    prefix = next(name for name in entries if name.endswith("data.pkl")).removesuffix("data.pkl")
    entries |= {prefix + name: data for name, data in change.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            if data is not None:
                archive.writestr(name, data)
    return path


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self._call


def plain(value: object) -> bytes:
    """The part of a pickle that makes plain data: without the protocol before it and the stop after it."""
    return pickle.dumps(value, 2)[2:-1]


def pickled_call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls MODULE.NAME(argument), where the module need not exist here."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + plain(argument) + b"\x85R."
