"""Make the packs in gemlite/ and hqq/ beside this file with the libraries that define these formats.

Only needed to make the files anew; the tests read them and import neither library. Run by hand, on a CPU, with

    pip install gemlite==0.6.0.post2 hqq==0.2.8.post1
    python tests/data/make_low_bit_packs.py

gemlite/binary.pt, ternary.pt   state dicts of linears "NxK.WIDTH.ORDER": elements of WIDTH bits, ORDER "rows"
                                (W_q in C order) or "columns" (W_q a transposed view)
gemlite/packed.npz              what was packed: "KIND.NxK.codes" u8[N, K], "KIND.NxK.scales" f32[N, K/128]
gemlite/others.pt               ternary linears [8, K] packed in other ways, and one with a bias
hqq/qmodel.pt                   modules "DTYPE.OPTIMISER.NxK.gGROUP", of 4 bits
hqq/values.npz                  of each module, as hqq itself unpacks it: ".codes" u8[N, K], ".values" f32[N, K]
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

DATA = Path(__file__).parent
BITS = {"binary": 1, "ternary": 2}
GEMLITE_SHAPES = [(8, 256), (5, 1280)]
HQQ_SHAPES = [(4, 128), (6, 320)]
# Ways of packing that the importer refuses, and one that it reads: options of gemlite's `pack`, K.
OTHERS = {
    "no zeros": ({"zeros": None}, 256),
    "zeros first": ({"fma_mode": False}, 256),
    "one scale a row": ({}, 128),
    "bias": ({"bias": torch.arange(8).half() / 16}, 256),
}


def import_gemlite() -> ModuleType:
    """gemlite.core with stand-ins for its kernels: they ask for a GPU when imported, packing needs none."""
    package = ModuleType("gemlite")
    package.__path__ = find_spec("gemlite").submodule_search_locations
    kernels = MagicMock(__all__=["gemv", "gemv_revsplitK", "gemv_splitK", "gemm_splitK", "gemm"])
    absent = {"gemlite": package, "gemlite.triton_kernels": kernels}
    for name in ("triton", "triton.language", "gemlite.triton_kernels.utils", "gemlite.quant_utils"):
        absent[name] = MagicMock()
    no_gpu = patch.object(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="none"))
    with patch.dict(sys.modules, absent), no_gpu:
        return import_module("gemlite.core")


def low_bit(kind: str, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes u8[N, K], s f32[N, K/128]) with s that float16 holds, some of them 0."""
    rng = np.random.default_rng(rows + columns)
    codes = rng.integers(0, 2 if kind == "binary" else 3, (rows, columns), dtype=np.uint8)
    scales = rng.uniform(0.0046, 0.0508, (rows, columns // 128)).astype(np.float16).astype(np.float32)
    scales[rng.random(scales.shape) < 0.1] = 0
    return codes, scales


def gemlite_linear(
    gemlite: ModuleType, kind: str, codes: np.ndarray, scales: np.ndarray, **options: object
) -> dict[str, torch.Tensor]:
    """The state dict of a linear that gemlite packed; `options` go to its `pack`."""
    rows, columns = codes.shape
    half = gemlite.DType.FP16
    layer = gemlite.GemLiteLinear(BITS[kind], 128, columns, rows, input_dtype=half, output_dtype=half)
    scale = torch.from_numpy(scales.reshape(-1, 1)) * (2 if kind == "binary" else 1)
    options = {"zeros": torch.full_like(scale, 0.5 if kind == "binary" else 1), "packing_bitwidth": 8, **options}
    layer.pack(torch.from_numpy(codes), scale, **options)
    return layer.state_dict()


def make_gemlite(folder: Path) -> None:
    """Write the gemlite packs and what was packed."""
    gemlite, packed = import_gemlite(), {}
    for kind in BITS:
        state = {}
        for rows, columns in GEMLITE_SHAPES:
            codes, scales = low_bit(kind, rows, columns)
            packed |= {f"{kind}.{rows}x{columns}.codes": codes, f"{kind}.{rows}x{columns}.scales": scales}
            for width in (8, 16, 32):
                for order in ("rows", "columns"):
                    options = {"packing_bitwidth": width, "contiguous": order == "rows"}
                    linear = gemlite_linear(gemlite, kind, codes, scales, **options)
                    state |= {f"{rows}x{columns}.{width}.{order}.{key}": value for key, value in linear.items()}
        torch.save(state, folder / f"{kind}.pt")
    np.savez_compressed(folder / "packed.npz", **packed)
    state = {}
    for name, (options, columns) in OTHERS.items():
        linear = gemlite_linear(gemlite, "ternary", *low_bit("ternary", 8, columns), **options)
        state |= {f"{name}.{key}": value for key, value in linear.items()}
    torch.save(state, folder / "others.pt")


def make_hqq(folder: Path) -> None:
    """Write the HQQ pack and hqq's own codes and values."""
    cases = [
        (shape, 64, dtype, optimiser)
        for shape in HQQ_SHAPES
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
        for optimiser in (True, False)
    ]
    cases += [((4, 192), 32, torch.float16, True), ((2, 1280), 128, torch.bfloat16, True)]
    modules, unpacked = {}, {}
    for (rows, columns), group, dtype, optimiser in cases:
        layer = torch.nn.Linear(columns, rows, bias=False)
        weight = np.random.default_rng(rows + columns).normal(0, 0.03, (rows, columns))
        layer.weight.data = torch.from_numpy(weight.astype(np.float32))
        config = BaseQuantizeConfig(nbits=4, group_size=group, axis=1)
        config["weight_quant_params"].update(optimize=optimiser, round_zero=False)
        made = HQQLinear(layer, config, compute_dtype=dtype, device="cpu")
        made.encoded_state_dict = False  # as hqq saves whole models
        kind = f"{str(dtype).removeprefix('torch.')}.{'optimised' if optimiser else 'plain'}"
        name = f"{kind}.{rows}x{columns}.g{group}"
        modules[name] = made.state_dict()
        codes = Quantizer.unpack["4bit_u8"](made.W_q)
        values = Quantizer.dequantize(made.W_q, {**made.meta, "compute_dtype": torch.float32})
        unpacked[f"{name}.codes"] = codes.numpy().astype(np.uint8).reshape(rows, columns)
        unpacked[f"{name}.values"] = values.detach().numpy()
    torch.save(modules, folder / "qmodel.pt")
    np.savez_compressed(folder / "values.npz", **unpacked)


if __name__ == "__main__":
    for folder, make in {"gemlite": make_gemlite, "hqq": make_hqq}.items():
        (DATA / folder).mkdir(exist_ok=True)
        make(DATA / folder)
