"""WGSL kernels: one registry record and one template each. See DESIGN.md §5."""

from webgpu_kernels.registry import Binding, Case, Kernel, Variant, all_kernels, get
from webgpu_kernels.render import Rendered, render, render_all

__all__ = ["Binding", "Case", "Kernel", "Rendered", "Variant", "all_kernels", "get", "render", "render_all"]
