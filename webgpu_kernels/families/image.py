"""Small kernels at the ends of the denoiser and the decoder: Euler step, latents, pixels."""

from __future__ import annotations

import numpy as np

from webgpu_kernels.grid import threads
from webgpu_kernels.registry import Binding, Case, Kernel, Numbers, Options, Variant, register

Arrays = dict[str, np.ndarray]


def _placed(values: np.ndarray, offset: int, elements: int) -> np.ndarray:
    """`values` at `offset` of an otherwise unwritten (NaN) output of `elements`."""
    out = np.full(elements, np.nan)
    out[offset : offset + values.size] = values.reshape(-1)
    return out


def _f32(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def _euler_step(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    count = uniforms["elements"]
    x, velocity = (inputs[name].astype(np.float64)[uniforms[f"{name}_offset"] :][:count] for name in ("x", "velocity"))
    y = x + np.float64(inputs["step_size"][0]) * velocity
    return {"y": _placed(y, uniforms["y_offset"], outputs["y"])}


def _euler_step_cases() -> list[Case]:
    def case(name: str, elements: int, x_offset: int, velocity_offset: int, y_offset: int) -> Case:
        return Case(
            name,
            {},
            {},
            {"elements": elements, "x_offset": x_offset, "velocity_offset": velocity_offset, "y_offset": y_offset},
            {
                "x": _f32(1, x_offset + elements, scale=41_000),
                "velocity": _f32(2, velocity_offset + elements, scale=3),
                "step_size": np.array([-0.2471], np.float32),
            },
            {"y": y_offset + elements + 3},
            error=1e-6,
        )

    return [case("one", 1, 0, 0, 0), case("odd", 1031, 5, 2, 7), case("whole-groups", 512, 0, 4, 8)]


register(
    Kernel(
        name="euler_step",
        bindings=(Binding("x"), Binding("velocity"), Binding("step_size"), Binding("y", "read_write")),
        constants={},
        uniforms={"elements": "u32", "x_offset": "u32", "velocity_offset": "u32", "y_offset": "u32"},
        options={},
        variants=(Variant("f32", "euler_step.wgsl", threads("elements")),),
        reference=_euler_step,
        cases=_euler_step_cases,
    )
)


def _pixels(inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers) -> Arrays:
    count = uniforms["pixels"]
    x = inputs["x"].astype(np.float64)[uniforms["x_offset"] :][: 3 * count].reshape(count, 3)
    rgb = np.floor(np.clip(x / 2 + 0.5, 0, 1) * 255 + 0.5)
    y = rgb @ [1.0, 256.0, 65_536.0] + 255.0 * 2**24
    return {"y": _placed(y, 0, outputs["y"])}


def _pixels_cases() -> list[Case]:
    # Values 1/300 away from every rounding tie, beyond both ends of the range as well.
    def case(name: str, count: int, x_offset: int) -> Case:
        levels = np.random.default_rng(3).integers(-40, 300, x_offset + 3 * count) + 0.3
        x = ((levels / 255 - 0.5) * 2).astype(np.float32)
        return Case(name, {}, {}, {"pixels": count, "x_offset": x_offset}, {"x": x}, {"y": count + 2})

    return [case("one", 1, 0), case("odd", 777, 5)]


register(
    Kernel(
        name="pixels",
        bindings=(Binding("x"), Binding("y", "read_write", "u32")),
        constants={},
        uniforms={"pixels": "u32", "x_offset": "u32"},
        options={},
        variants=(Variant("f32", "pixels.wgsl", threads("pixels")),),
        reference=_pixels,
        cases=_pixels_cases,
    )
)


def _latents_unpack(
    inputs: Arrays, options: Options, constants: Numbers, uniforms: Numbers, outputs: Numbers
) -> Arrays:
    rows, columns, channels = uniforms["rows"], uniforms["columns"], constants["CHANNELS"]
    x = inputs["x"].astype(np.float64)[uniforms["x_offset"] :][: rows * columns * 4 * channels]
    x = x.reshape(rows, columns, 4 * channels) * inputs["deviation"].astype(np.float64) + inputs["mean"]
    y = x.reshape(rows, columns, channels, 2, 2).transpose(0, 3, 1, 4, 2)
    return {"y": _placed(y, uniforms["y_offset"], outputs["y"])}


def _latents_unpack_cases() -> list[Case]:
    def case(name: str, rows: int, columns: int, channels: int, x_offset: int, y_offset: int) -> Case:
        elements = rows * columns * 4 * channels
        return Case(
            name,
            {},
            {"CHANNELS": channels},
            {"rows": rows, "columns": columns, "x_offset": x_offset, "y_offset": y_offset},
            {
                "x": _f32(5, x_offset + elements),
                "deviation": np.abs(_f32(6, 4 * channels)) + 0.5,
                "mean": _f32(7, 4 * channels),
            },
            {"y": y_offset + elements + 5},
            error=1e-6,
        )

    return [case("odd", 3, 5, 7, 3, 2), case("klein", 4, 2, 32, 0, 0), case("one", 1, 1, 1, 0, 0)]


register(
    Kernel(
        name="latents_unpack",
        bindings=(Binding("x"), Binding("deviation"), Binding("mean"), Binding("y", "read_write")),
        constants={"CHANNELS": "u32"},
        uniforms={"rows": "u32", "columns": "u32", "x_offset": "u32", "y_offset": "u32"},
        options={},
        variants=(Variant("f32", "latents_unpack.wgsl", threads(["mul", "rows", "columns", 4, "CHANNELS"])),),
        reference=_latents_unpack,
        cases=_latents_unpack_cases,
    )
)
