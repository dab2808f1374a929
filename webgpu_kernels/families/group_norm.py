"""Group norm of an image in two passes: group_norm_stats, then group_norm.

The caller chooses CHUNKS: more chunks spread the first pass over more threads, but every thread of the
second merges them all. 128 is good from small images on software adapters to 1024x1024 on a GPU.
Statistics are f32 and survive magnitudes of 41,000. A chunk's mean is stored as one f32, so the result is
off by up to 2^-24 · |mean| / deviation, as any f32 group norm is.
"""

from __future__ import annotations

import numpy as np

from webgpu_kernels.grid import threads
from webgpu_kernels.registry import Binding, Case, Kernel, Variant, register
from webgpu_kernels.strided import gather, guarded, scatter

LARGE = 41_000.0  # magnitude that residual streams of the networks reach


def _grouped(x: np.ndarray, groups: int, chunks: int) -> list[list[np.ndarray]]:
    """The values of each group and chunk; x: f64[pixels, channels]."""
    pixels, channels = x.shape
    chunk = -(-pixels // chunks)
    size = channels // groups
    return [[x[c * chunk : (c + 1) * chunk, g * size : (g + 1) * size] for c in range(chunks)] for g in range(groups)]


def _stats(x: np.ndarray, groups: int, chunks: int) -> np.ndarray:
    """f64[groups, chunks, 2]: mean and sum of squared deviations; zeros for an empty chunk."""
    return np.array(
        [
            [(v.mean(), ((v - v.mean()) ** 2).sum()) if v.size else (0.0, 0.0) for v in chunked]
            for chunked in _grouped(x, groups, chunks)
        ]
    )


def _image(inputs, constants, uniforms) -> np.ndarray:
    sizes = (uniforms["pixels"], constants["CHANNELS"])
    return gather(inputs["x"], uniforms["x_offset"], sizes, (constants["CHANNELS"], 1))


def _group_norm_stats_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    x = _image(inputs, constants, uniforms)
    return {"stats": _stats(x, constants["GROUPS"], constants["CHUNKS"]).reshape(-1)}


def _test_images(random: np.random.Generator) -> dict[str, tuple[np.ndarray, int, int]]:
    """Name -> x: f64[pixels, channels], groups, chunks."""
    outlier = random.standard_normal((500, 64))
    outlier[::100] = LARGE
    return {
        "one_pixel": (random.standard_normal((1, 6)) + 1, 3, 4),
        "one_channel_groups": (random.standard_normal((77, 5)), 5, 8),
        "odd": (random.standard_normal((301, 96)) + 0.5, 32, 64),
        "wide_groups": (random.standard_normal((33, 300)), 2, 5),
        "large": (random.standard_normal((77, 32)) * LARGE, 4, 7),
        "offset": (random.standard_normal((640, 32)) * 400 + LARGE, 4, 4),
        "outlier": (outlier, 8, 16),
    }


def _image_input(x: np.ndarray, offset: int) -> np.ndarray:
    return guarded(offset + x.size, offset, (x.shape[1], 1), x)


def _group_norm_stats_cases() -> list[Case]:
    cases = []
    for name, (x, groups, chunks) in _test_images(np.random.default_rng(9)).items():
        constants = {"CHANNELS": x.shape[1], "GROUPS": groups, "CHUNKS": chunks}
        uniforms = {"pixels": len(x), "x_offset": 3}
        outputs = {"stats": groups * chunks * 2}
        cases.append(Case(name, {}, constants, uniforms, {"x": _image_input(x, 3)}, outputs))
    return cases


GROUP_NORM_STATS = register(
    Kernel(
        name="group_norm_stats",
        bindings=(Binding("x"), Binding("stats", "read_write")),
        constants={"CHANNELS": "u32", "GROUPS": "u32", "CHUNKS": "u32"},
        uniforms={"pixels": "u32", "x_offset": "u32"},
        options={},
        variants=(Variant("baseline", "group_norm_stats.wgsl", threads(["mul", "CHUNKS", "GROUPS"], 64)),),
        reference=_group_norm_stats_reference,
        cases=_group_norm_stats_cases,
    )
)


def _group_norm_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    """From x alone: the stats must merge to what the whole group's values give."""
    x = _image(inputs, constants, uniforms)
    pixels, channels = x.shape
    grouped = x.reshape(pixels, constants["GROUPS"], -1)
    mean, variance = grouped.mean((0, 2), keepdims=True), grouped.var((0, 2), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + constants["EPS"])).reshape(pixels, channels)
    y = y * inputs["weight"][:channels].astype(np.float64) + inputs["bias"][:channels].astype(np.float64)
    if options["silu"]:
        y = y * 0.5 * (1 + np.tanh(0.5 * y))
    return {"y": scatter(outputs["y"], uniforms["y_offset"], (channels, 1), y)}


def _group_norm_cases() -> list[Case]:
    random = np.random.default_rng(10)
    cases = []
    for name, (x, groups, chunks) in _test_images(random).items():
        channels = x.shape[1]
        image = _image_input(x, 2)
        stats = _stats(image[2:].reshape(x.shape).astype(np.float64), groups, chunks)
        inputs = {
            "x": image,
            "stats": stats.reshape(-1).astype(np.float32),
            "weight": random.standard_normal(channels).astype(np.float32),
            "bias": random.standard_normal(channels).astype(np.float32),
        }
        constants = {"CHANNELS": channels, "GROUPS": groups, "CHUNKS": chunks, "EPS": 1e-6}
        uniforms = {"pixels": len(x), "x_offset": 2, "y_offset": 5}
        for silu in (False, True):
            suffix = "_silu" if silu else ""
            cases.append(
                Case(name + suffix, {"silu": silu}, constants, uniforms, inputs, {"y": 5 + x.size}, error=2e-5)
            )
    return cases


GROUP_NORM = register(
    Kernel(
        name="group_norm",
        bindings=(Binding("x"), Binding("stats"), Binding("weight"), Binding("bias"), Binding("y", "read_write")),
        constants={"CHANNELS": "u32", "GROUPS": "u32", "CHUNKS": "u32", "EPS": "f32"},
        uniforms={"pixels": "u32", "x_offset": "u32", "y_offset": "u32"},
        options={"silu": (False, True)},
        variants=(
            Variant("baseline", "group_norm.wgsl", (["ceil_div", "pixels", 128], ["ceil_div", "CHANNELS", 64], 1)),
        ),
        reference=_group_norm_reference,
        cases=_group_norm_cases,
    )
)
