"""Template + options -> WGSL text and the facts the runtime needs to dispatch it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from webgpu_kernels.registry import Binding, Groups, Kernel, Options, Variant, get
from webgpu_kernels.weights import LOAD_VECTORS

CORE_BUFFERS = 8  # storage buffers of a shader on every WebGPU device


@dataclass(frozen=True, slots=True)
class Rendered:
    """A shader and its interface; `to_json` is its entry in the site's kernel index."""

    kernel: str
    options: dict[str, Any]
    variant: Variant
    wgsl: str
    record: Kernel

    @property
    def file(self) -> str:
        digest = hashlib.sha256(self.wgsl.encode()).hexdigest()[:16]
        return f"{self.kernel}.{self.variant.name}.{digest}.wgsl"

    @property
    def bindings(self) -> list[Binding]:
        """What the shader binds, in order: converted operands in place of what they are converted from."""
        return self.variant.bindings(self.record.present_bindings(self.options))

    @property
    def limits(self) -> dict[str, int]:
        """What the shader needs beyond core WebGPU: the variant's, and more storage buffers where it binds so many."""
        count = len(self.bindings)
        return {**self.variant.limits, **({"maxStorageBuffersPerShaderStage": count} if count > CORE_BUFFERS else {})}

    @property
    def groups(self) -> Groups:
        """The workgroup counts (x, y, z) as expressions."""
        groups = self.variant.groups
        return groups({**self.options, **self.variant.context}) if callable(groups) else groups

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "options": self.options,
            "variant": self.variant.name,
            "file": self.file,
            "features": list(self.variant.features),
            "limits": self.limits,
            "default": self.variant.default,
            "software": self.variant.software,
            "error": self.variant.error,
            "language_features": list(self.variant.language_features),
            "matrix": list(self.variant.matrix) if self.variant.matrix else None,
            "multiples": dict(self.variant.multiples),
            "fixed": dict(self.variant.fixed),
            "converts": dict(self.variant.converts),
            "bindings": [{"name": b.name, "access": b.access, "dtype": b.dtype} for b in self.bindings],
            "uniforms": [{"name": name, "type": kind} for name, kind in self.record.uniforms.items()],
            "constants": list(self.record.constants),
            "groups": list(self.groups),
        }


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "wgsl")
    made = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    made.globals["LOAD_VECTORS"] = LOAD_VECTORS
    return made


def _interface(record: Kernel, options: Options, variant: Variant) -> str:
    """Overrides, bindings and the `Params` struct, generated so that they are declared once."""
    lines = [f"override {name}: {kind};" for name, kind in record.constants.items()]
    present = variant.bindings(record.present_bindings(options))
    elements = variant.elements(options)
    lines.append("struct Params {")
    lines += [f"    {name}: {kind}," for name, kind in record.uniforms.items()]
    lines.append("}")
    for index, binding in enumerate(present):
        element = elements.get(binding.name, binding.dtype)
        lines.append(f"@group(0) @binding({index}) var<storage, {binding.access}> {binding.name}: array<{element}>;")
    lines.append(f"@group(0) @binding({len(present)}) var<uniform> params: Params;")
    return "\n".join(lines)


def render(
    name: str, options: Options, variant: str | None = None, context: Mapping[str, Any] | None = None
) -> Rendered:
    """The WGSL of one kernel variant.

    Args:
        name: kernel name in the registry.
        options: compile-time choices; missing ones take the kernel's defaults.
        variant: variant name; the baseline when omitted.
        context: tunable numbers of the variant to replace (tile sizes, ...).

    Raises:
        KeyError, ValueError: unknown kernel, option, value, variant or number, or options that it does not serve.
    """
    record = get(name)
    full = record.complete(options)
    chosen = [v for v in record.variants if variant in (None, v.name)]
    if not chosen:
        raise ValueError(f"kernel {name} has no variant {variant!r}; it has {[v.name for v in record.variants]}")
    if not chosen[0].serves(full):
        raise ValueError(f"kernel {name}, variant {variant}: serves {dict(chosen[0].when)}, found {full}")
    unknown = sorted(set(context or {}) - set(chosen[0].context))
    if unknown:
        known = list(chosen[0].context)
        raise ValueError(f"kernel {name}, variant {variant}: no number {unknown[0]!r}; it has {known}")
    return _render(record, full, replace(chosen[0], context={**chosen[0].context, **(context or {})}))


def _render(record: Kernel, full: Mapping[str, Any], variant: Variant) -> Rendered:
    text = (
        _environment()
        .get_template(variant.template)
        .render(**full, **variant.context, variant=variant.name, interface=_interface(record, full, variant))
    )
    return Rendered(record.name, dict(full), variant, text, record)


def render_all(name: str, options: Options) -> list[Rendered]:
    """Every variant of one kernel that serves the options, the baseline first."""
    record = get(name)
    full = record.complete(options)
    return [_render(record, full, variant) for variant in record.variants if variant.serves(full)]
