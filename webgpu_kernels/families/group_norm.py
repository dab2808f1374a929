"""Group norm of a picture, which may come in windows: statistics, then a factor and a summand for every channel.

`group_norm_stats` writes CHUNKS slots for a window, `group_norm_affine` merges the slots of all windows into scale
and shift with which the norm is x·scale + shift: what conv2d applies while it loads x, and `group_norm` where no
convolution follows. Statistics are f32 and survive magnitudes of 41,000; means and shifts are f32 too, so the
result is off by about 2^-23 · |mean| / deviation.
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
    """f64[chunks, groups, 3]: count, mean, sum of squared deviations; zeros for an empty chunk."""
    return np.array(
        [
            [(v.size, v.mean(), ((v - v.mean()) ** 2).sum()) if v.size else (0.0, 0.0, 0.0) for v in grouped]
            for grouped in zip(*_grouped(x, groups, chunks), strict=True)
        ]
    )


def _image(inputs, constants, uniforms) -> np.ndarray:
    sizes = (uniforms["pixels"], constants["CHANNELS"])
    return gather(inputs["x"], uniforms["x_offset"], sizes, (constants["CHANNELS"], 1))


def _group_norm_stats_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    slots = _stats(_image(inputs, constants, uniforms), constants["GROUPS"], constants["CHUNKS"]).reshape(-1)
    first = uniforms["slot_first"] * constants["GROUPS"] * 3
    return {"stats": scatter(outputs["stats"], first, (1,), slots)}


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
    for slot_first, (name, (x, groups, chunks)) in enumerate(_test_images(np.random.default_rng(9)).items()):
        constants = {"CHANNELS": x.shape[1], "GROUPS": groups, "CHUNKS": chunks}
        uniforms = {"pixels": len(x), "x_offset": 3, "slot_first": slot_first}
        outputs = {"stats": (slot_first + chunks + 1) * groups * 3}
        cases.append(Case(name, {}, constants, uniforms, {"x": _image_input(x, 3)}, outputs))
    return cases


register(
    Kernel(
        name="group_norm_stats",
        bindings=(Binding("x"), Binding("stats", "read_write")),
        constants={"CHANNELS": "u32", "GROUPS": "u32", "CHUNKS": "u32"},
        uniforms={"pixels": "u32", "x_offset": "u32", "slot_first": "u32"},
        options={},
        variants=(Variant("baseline", "group_norm_stats.wgsl", threads(["mul", "CHUNKS", "GROUPS"], 64)),),
        reference=_group_norm_stats_reference,
        cases=_group_norm_stats_cases,
    )
)


def _group_norm_affine_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    """Mean and variance of the union from those of the parts: the deviations from the common mean, summed."""
    channels, groups = constants["CHANNELS"], constants["GROUPS"]
    slots = gather(inputs["stats"], 0, (uniforms["slots"], groups, 3), (groups * 3, 3, 1))
    count, mean, squares = np.moveaxis(slots, 2, 0)
    total = count.sum(0)
    common = (count * mean).sum(0) / total
    variance = (squares + count * (mean - common) ** 2).sum(0) / total
    weight, bias = (inputs[name][:channels].astype(np.float64) for name in ("weight", "bias"))
    scale = weight / np.sqrt(variance + constants["EPS"]).repeat(channels // groups)
    return {"scale": scale, "shift": bias - common.repeat(channels // groups) * scale}


def _group_norm_affine_cases() -> list[Case]:
    random = np.random.default_rng(11)
    cases = []
    for name, (x, groups, chunks) in _test_images(random).items():
        channels = x.shape[1]
        # Two windows of different sizes; the second of a single pixel has empty chunks.
        windows = [x[:-1], x[-1:]] if len(x) > 1 else [x]
        stats = np.concatenate([_stats(window, groups, chunks) for window in windows])
        inputs = {
            "stats": _image_input(stats.reshape(-1, 3), 0),
            "weight": random.standard_normal(channels).astype(np.float32),
            "bias": random.standard_normal(channels).astype(np.float32),
        }
        constants = {"CHANNELS": channels, "GROUPS": groups, "EPS": 1e-6}
        outputs = {"scale": channels, "shift": channels}
        cases.append(Case(name, {}, constants, {"slots": len(stats)}, inputs, outputs, error=1e-6))
    return cases


register(
    Kernel(
        name="group_norm_affine",
        bindings=(
            Binding("stats"),
            Binding("weight"),
            Binding("bias"),
            Binding("scale", "read_write"),
            Binding("shift", "read_write"),
        ),
        constants={"CHANNELS": "u32", "GROUPS": "u32", "EPS": "f32"},
        uniforms={"slots": "u32"},
        options={},
        variants=(Variant("baseline", "group_norm_affine.wgsl", ("GROUPS", 1, 1)),),
        reference=_group_norm_affine_reference,
        cases=_group_norm_affine_cases,
    )
)


def _group_norm_reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    channels = constants["CHANNELS"]
    y = _image(inputs, constants, uniforms) * inputs["scale"][:channels].astype(np.float64) + inputs["shift"][:channels]
    if options["silu"]:
        y = y * 0.5 * (1 + np.tanh(0.5 * y))
    return {"y": scatter(outputs["y"], uniforms["y_offset"], (channels, 1), y)}


def _group_norm_cases() -> list[Case]:
    random = np.random.default_rng(10)
    cases = []
    for name, (x, _, _) in _test_images(random).items():
        channels = x.shape[1]
        scale = random.standard_normal(channels) / x.std(0).clip(0.1)
        inputs = {
            "x": _image_input(x, 2),
            "scale": scale.astype(np.float32),
            "shift": (random.standard_normal(channels) - x.mean(0) * scale).astype(np.float32),
        }
        uniforms = {"pixels": len(x), "x_offset": 2, "y_offset": 5}
        for silu in (False, True):
            suffix = "_silu" if silu else ""
            outputs = {"y": 5 + x.size}
            cases.append(Case(name + suffix, {"silu": silu}, {"CHANNELS": channels}, uniforms, inputs, outputs))
    return cases


register(
    Kernel(
        name="group_norm",
        bindings=(Binding("x"), Binding("scale"), Binding("shift"), Binding("y", "read_write")),
        constants={"CHANNELS": "u32"},
        uniforms={"pixels": "u32", "x_offset": "u32", "y_offset": "u32"},
        options={"silu": (False, True)},
        variants=(
            Variant("baseline", "group_norm.wgsl", (["ceil_div", "pixels", 64], ["ceil_div", "CHANNELS", 64], 1)),
        ),
        reference=_group_norm_reference,
        cases=_group_norm_cases,
    )
)
