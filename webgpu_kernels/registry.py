"""The list of kernels: what a shader cannot say about itself, and how it is tested.

A `Kernel` names its operands, parameters, grid, numpy reference and test cases; its WGSL lives in
`wgsl/`. Everything else (lowering, site, tests) reads this list and repeats none of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from webgpu_kernels.operands import has_scales

Options = Mapping[str, Any]
Numbers = Mapping[str, Any]  # constants, uniforms or element counts by name
Expression = Any  # int | float | name | [operator, ...]; see exporter/expressions.py and DESIGN.md §4

Groups = tuple[Expression, Expression, Expression]

MATRIX_FEATURE = "chromium-experimental-subgroup-matrix"  # of a device: subgroup matrices

DTYPES = {"f32": np.float32, "u32": np.uint32}


@dataclass(frozen=True, slots=True)
class Binding:
    """One storage buffer of a kernel, in binding order.

    `when` maps an option name to the values for which the binding exists; empty means always.
    """

    name: str
    access: str = "read"  # "read" | "read_write"
    dtype: str = "f32"  # element type of the buffer: "f32" | "u32" (packed data is u32)
    when: Mapping[str, tuple] = field(default_factory=dict)

    def present(self, options: Options) -> bool:
        return all(options[name] in values for name, values in self.when.items())


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compute a kernel: a template, what it needs of the adapter, and its grid.

    `groups` gives the workgroup counts (x, y, z) as expressions over the kernel's uniforms,
    constants and (integer) options, or is a function of the options that gives them.
    `context` is passed to the template beside the options;
    `elements(options)` names bindings whose array element is not the binding's dtype (vec4f, ...).
    `default`: whether a page may choose it by itself; else it runs only where it is asked for by name, or, if
    `software`, in the baseline's place where a CPU computes.
    `when` maps options to the values that the variant serves, `multiples` constants to what they must be multiples
    of, `fixed` constants to what they must be; empty means all. `language_features` are of WGSL
    (`navigator.gpu.wgslLanguageFeatures`), `matrix` is what `adapter.info.subgroupMatrixConfigs` must list: component
    type, result type, M, N, K. `converts` maps bindings to the operand type that they are converted to before the
    dispatch (`webgpu_kernels/operands.py`); the shader then binds the converted rows, dense, in their place, followed
    by their scales where the type has some.
    """

    name: str
    template: str
    groups: Groups | Callable[[Options], Groups]
    features: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    elements: Callable[[Options], Mapping[str, str]] = lambda options: {}  # WGSL element types
    error: float | None = None  # bound on the normalized error, where it differs from the case's
    default: bool = True
    software: bool = False
    when: Mapping[str, tuple] = field(default_factory=dict)
    multiples: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)
    language_features: tuple[str, ...] = ()
    matrix: tuple[str, str, int, int, int] | None = None
    converts: Mapping[str, str] = field(default_factory=dict)

    def serves(self, options: Options) -> bool:
        return all(options[name] in values for name, values in self.when.items())

    def fits(self, constants: Numbers) -> bool:
        return all(constants[name] % multiple == 0 for name, multiple in self.multiples.items()) and all(
            constants[name] == value for name, value in self.fixed.items()
        )

    def bindings(self, present: Sequence[Binding]) -> list[Binding]:
        """`present` with the variant's converted operands in place of what they are converted from."""
        found = []
        for binding in present:
            kind = self.converts.get(binding.name)
            found.append(replace(binding, dtype="u32") if kind else binding)
            if has_scales(kind):
                found.append(Binding(f"{binding.name}_scales"))
        return found


@dataclass(frozen=True, slots=True)
class Case:
    """One test: options, constants, uniforms and input arrays.

    `inputs` maps binding names to arrays; outputs (`read_write` bindings) map to their element
    counts, and stand in `inputs` too where the kernel adds to what they hold. `error` bounds
    ‖out − reference‖ / ‖reference‖ (float64 reference).
    """

    name: str
    options: Mapping[str, Any]
    constants: Mapping[str, int | float]
    uniforms: Mapping[str, int | float]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, int]
    error: float = 1e-5


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel: its operands, parameters, variants, reference and cases.

    `options` maps each option to its allowed values (first = default). `constants` become WGSL
    pipeline-overridable constants; `uniforms` one `Params` struct, the last binding of group 0.
    `reference(inputs, options, constants, uniforms, outputs)` takes arrays by binding name and
    returns `{binding: array}` with NaN wherever the kernel must not write.
    """

    name: str
    bindings: tuple[Binding, ...]
    constants: Mapping[str, str]  # name -> "u32" | "f32"
    uniforms: Mapping[str, str]  # name -> "u32" | "f32"
    options: Mapping[str, tuple]
    variants: tuple[Variant, ...]  # the first one is the baseline: core limits, no feature
    reference: Callable[..., dict[str, np.ndarray]]
    cases: Callable[[], Sequence[Case]]

    def complete(self, options: Options) -> dict[str, Any]:
        """Fill defaults and check names and values.

        Raises:
            ValueError: an unknown option, or a value that the kernel does not list.
        """
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise ValueError(f"kernel {self.name} has no option {unknown[0]!r}; it has {list(self.options)}")
        full = {name: options.get(name, allowed[0]) for name, allowed in self.options.items()}
        for name, value in full.items():
            if value not in self.options[name]:
                raise ValueError(f"kernel {self.name}, option {name}: {value!r} is not one of {self.options[name]}")
        return full

    def present_bindings(self, options: Options) -> list[Binding]:
        full = self.complete(options)
        return [binding for binding in self.bindings if binding.present(full)]


_kernels: dict[str, Kernel] = {}


def register(kernel: Kernel) -> Kernel:
    if kernel.name in _kernels:
        raise ValueError(f"kernel {kernel.name} is registered twice")
    _kernels[kernel.name] = kernel
    return kernel


def _load() -> None:
    families = importlib.import_module("webgpu_kernels.families")
    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"webgpu_kernels.families.{module.name}")


def all_kernels() -> dict[str, Kernel]:
    """Every registered kernel by name."""
    _load()
    return dict(sorted(_kernels.items()))


def get(name: str) -> Kernel:
    """The kernel called `name`.

    Raises:
        KeyError: no such kernel; the message lists those there are.
    """
    kernels = all_kernels()
    if name not in kernels:
        raise KeyError(f"no kernel {name!r}; there are {', '.join(kernels)}")
    return kernels[name]
