"""Engines outside the browser on this machine's GPU: diffusers in bf16, gemlite, onnxruntime-webgpu.

    python -m exporter.bench.engines NAME ROWSxNxK [WxH ...]     prints a JSON object a measurement

Each runs in a process of its own, before and after the page, so that none shares the GPU with another. They are not
among this project's dependencies; one that is not installed, or finds no GPU, is a row that says so.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.bench.peers import product_model, product_name
from exporter.klein import KLEIN_4B
from exporter.packages import ROOT

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]  # as exporter.bench.peers.measure_peers makes them; `when`: before or after the page

TEXT_TOKENS = 512
GROUP = 128
# As PRODUCTS, and whether operands are f16: what this engine has a fast way for, and what it has not.
ONNX_PRODUCTS = (
    ((2, 128, 4), np.float32),
    ((2, 128, 4), np.float16),
    ((4, 32, 4), np.float16),
    ((4, 32, 4), np.float32),
    ((None, 0, 0), np.float16),
    ((None, 0, 0), np.float32),
)
CHAINS = (10, 40)  # products in a row: their difference has no transfers in it


def measure_engines(product: tuple[int, int, int], sizes: tuple[tuple[int, int], ...], when: str) -> list[Row]:
    """Run every engine in turn.

    Args:
        product: rows, outputs and inputs.
        sizes: of pictures, in pixels.
    """
    rows: list[Row] = []
    for name in ENGINES:
        arguments = ["x".join(map(str, numbers)) for numbers in (product, *sizes)]
        command = [sys.executable, "-m", "exporter.bench.engines", name, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        rows += [json.loads(line) | {"when": when} for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            rows.append({"engine": name, "product": "", "shape": "", "error": said, "when": when})
    return rows


def median_ms(run: Callable[[], object], wait: Callable[[], object], runs: int = 10) -> float:
    """Milliseconds of a run by the clock; `wait` returns when the GPU has nothing left to do."""
    times = []
    for index in range(runs + 3):
        began = time.perf_counter()
        run()
        wait()
        if index >= 3:  # the first ones compile and warm up
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def random_transformer(config: dict[str, Any], device: str, dtype: torch.dtype) -> torch.nn.Module:
    """diffusers' `Flux2Transformer2DModel` with random weights."""
    import torch
    from diffusers import Flux2Transformer2DModel

    with torch.device("meta"):
        model = Flux2Transformer2DModel.from_config(config)
    model = model.to_empty(device=device).to(dtype).eval()
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        shape = tuple(parameter.shape)
        ones = torch.ones(shape, device=device, dtype=dtype)
        values = ones if len(shape) == 1 else torch.randn(shape, generator=generator, device=device, dtype=dtype) * 0.02
        parameter.data = values
    return model


def step_of(
    model: torch.nn.Module, config: dict[str, Any], size: tuple[int, int], text_tokens: int = TEXT_TOKENS
) -> Callable[[], torch.Tensor]:
    """What runs one denoising step: velocities [1, image tokens, channels]."""
    import torch

    parameter = next(model.parameters())
    like = {"device": parameter.device, "dtype": parameter.dtype}
    columns, rows = (side // 16 for side in size)
    grid = torch.arange(rows * columns, device=parameter.device)
    image_ids = torch.stack([0 * grid, grid // columns, grid % columns, 0 * grid], dim=1)[None].float()
    text = torch.arange(text_tokens, device=parameter.device)
    text_ids = torch.stack([0 * text, 0 * text, 0 * text, text], dim=1)[None].float()
    arguments = {
        "hidden_states": torch.randn(1, rows * columns, config["in_channels"], **like),
        "encoder_hidden_states": torch.randn(1, text_tokens, config["joint_attention_dim"], **like),
        "timestep": torch.full((1,), 0.7, **like),
        "img_ids": image_ids,
        "txt_ids": text_ids,
        "return_dict": False,
    }

    @torch.no_grad()
    def step() -> torch.Tensor:
        return model(**arguments)[0]

    return step


def _rate(rows: int, n: int, k: int, ms: float) -> Row:
    return {"shape": f"{rows}x{n}x{k}", "ms": ms, "tflops": 2 * rows * n * k / ms / 1e9}


def _diffusers(product: tuple[int, ...], sizes: list[tuple[int, ...]]) -> Iterator[Row]:
    import diffusers
    import torch
    from diffusers import AutoencoderKLFlux2
    from transformers import Qwen3Config, Qwen3Model

    engine = {"engine": f"diffusers {diffusers.__version__}, bf16, torch {torch.__version__}"}
    like = {"device": "cuda", "dtype": torch.bfloat16}
    wait = torch.cuda.synchronize
    rows, n, k = product
    x, weight = torch.randn(rows, k, **like), torch.randn(n, k, **like)
    yield {**engine, "product": "dense bf16", **_rate(rows, n, k, median_ms(lambda: x @ weight.T, wait))}
    config = KLEIN_4B["transformer"]
    model = random_transformer(config, **like)
    for size in sizes:
        ms = median_ms(step_of(model, config, size), wait)
        yield {**engine, "product": "klein-4B step", "shape": f"{size[0]}x{size[1]}", "ms": ms}
    del model
    vae = AutoencoderKLFlux2.from_config(KLEIN_4B["vae"]).to(**like).eval()
    channels = KLEIN_4B["vae"]["latent_channels"]
    with torch.no_grad():
        for width, height in sizes:
            latents = torch.randn(1, channels, height // 8, width // 8, **like)
            ms = median_ms(lambda latents=latents: vae.decode(latents, return_dict=False), wait)
            yield {**engine, "product": "klein-4B decode", "shape": f"{width}x{height}", "ms": ms}
        text = Qwen3Model(Qwen3Config(**{**KLEIN_4B["text_encoder"], "num_hidden_layers": 27})).to(**like).eval()
        tokens = torch.randint(0, 1000, (1, TEXT_TOKENS), device="cuda")
        ms = median_ms(lambda: text(input_ids=tokens), wait)
    yield {**engine, "product": "klein-4B encode", "shape": f"{TEXT_TOKENS} tokens", "ms": ms}


def _gemlite(product: tuple[int, ...], sizes: list[tuple[int, ...]]) -> Iterator[Row]:
    from importlib.metadata import version

    import torch
    from gemlite.core import DType, GemLiteLinearTriton

    engine = {"engine": f"gemlite {version('gemlite')}, f16"}
    like = {"device": "cuda", "dtype": torch.float16}
    wait = torch.cuda.synchronize

    def packed(n: int, k: int, bits: int) -> torch.nn.Module:
        linear = GemLiteLinearTriton(bits, GROUP, k, n, input_dtype=DType.FP16, output_dtype=DType.FP16)
        codes = torch.randint(0, 2**bits, (n, k), device="cuda", dtype=torch.uint8)
        scales = torch.full((n * k // GROUP, 1), 0.02, **like)
        zeros = torch.full((n * k // GROUP, 1), 1.0 if bits == 2 else 0.5, **like)
        linear.pack(codes, scales, zeros, bias=None)
        return linear

    rows, n, k = product
    x = torch.randn(rows, k, **like)
    for bits in (2, 1):
        linear = packed(n, k, bits)
        ms = median_ms(lambda linear=linear: linear(x), wait)
        yield {**engine, "product": f"{bits}-bit", **_rate(rows, n, k, ms)}
    config = KLEIN_4B["transformer"]
    model = random_transformer(config, **like)
    for blocks in (model.transformer_blocks, model.single_transformer_blocks):
        found = [(name, one) for name, one in blocks.named_modules() if isinstance(one, torch.nn.Linear)]
        for name, one in found:
            parent, _, last = name.rpartition(".")
            setattr(blocks.get_submodule(parent), last, packed(one.out_features, one.in_features, 2))
    for size in sizes:
        ms = median_ms(step_of(model, config, size), wait)
        yield {**engine, "product": "klein-4B step, 2-bit", "shape": f"{size[0]}x{size[1]}", "ms": ms}


def _onnxruntime(
    product: tuple[int, ...], sizes: list[tuple[int, ...]], provider: str = "WebGpuExecutionProvider"
) -> Iterator[Row]:
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"onnxruntime: expected {provider}, found {onnxruntime.get_available_providers()}")
    rows, _, k = product
    for peer, dtype in ONNX_PRODUCTS:
        x = np.random.default_rng(0).standard_normal((rows, k)).astype(dtype)
        times = []
        for count in CHAINS:
            model = product_model(rows, k, k, peer, count, dtype).SerializeToString()
            session = onnxruntime.InferenceSession(model, providers=[provider])
            times.append(median_ms(lambda session=session, x=x: session.run(None, {"x": x}), lambda: None, runs=5))
        ms = (times[1] - times[0]) / (CHAINS[1] - CHAINS[0])
        engine = f"onnxruntime-webgpu {onnxruntime.__version__}, {np.dtype(dtype).name}"
        yield {"engine": engine, "product": product_name(*peer) if peer[0] else "dense", **_rate(rows, k, k, ms)}


ENGINES = {"diffusers": _diffusers, "gemlite": _gemlite, "onnxruntime-webgpu": _onnxruntime}


def main(arguments: list[str]) -> None:
    name, product, *sizes = arguments
    numbers = [tuple(int(number) for number in text.split("x")) for text in (product, *sizes)]
    for row in ENGINES[name](numbers[0], numbers[1:]):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
