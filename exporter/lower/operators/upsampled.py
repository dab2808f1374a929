"""The doubling convolution with a shortcut (exporter/passes/split_upsampled.py), in bands.

u = up(double(x)) is the largest picture: 1 GiB for 1024x1024 of FLUX.2's decoder. Where it is more than one
band, no buffer holds all of u beside h and s. A first loop computes its bands for the statistics alone. A
second makes each band of u again, with the rows around it that h needs, and writes that band of h and s.
Where u comes from then lies at the end of the buffer of s, whose rows are written over rows no band needs any
more: all of u as the first loop copied it there, if it has at most `held_elements`; else a copy of x, from
which the band of u is computed a second time. With one band there is neither copy nor second computation.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.lower.bands import (
    END,
    FIRST,
    Expression,
    Picture,
    add,
    at_most,
    band_rows,
    ceil_div,
    least,
    most,
    mul,
    sub,
)
from exporter.lower.lowering import Lowering
from exporter.lower.operators.banded import (
    Kernel,
    Norm,
    emit_affine,
    emit_conv,
    emit_copy,
    emit_pointwise,
    emit_stats,
    new_stats,
    picture,
    stored_kernel,
)
from exporter.lower.operators.common import padded
from exporter.lower.sizes import shape_of
from exporter.lower.views import View
from exporter.passes.match import attribute


def upsampled(low: Lowering, node: ir.Node) -> None:
    x_value, *rest = padded(node, 9)
    up, first = stored_kernel(node, *rest[0:2]), stored_kernel(node, *rest[2:4])
    norm, shortcut = Norm.of(node, *rest[4:6]), stored_kernel(node, *rest[6:8])
    h_value, s_value = node.outputs
    x = picture(low, low.image(low.view(x_value), x_value.name))
    height, width = mul(2, x.height), mul(2, x.width)

    rows = band_rows(height, mul(width, max(up.out, first.out, shortcut.out)), 2 * first.half)
    bands = ceil_div(height, rows)
    several = least(1, sub(bands, 1))
    held = at_most(mul(height, width, up.out), "held_elements")
    copied, repeated = mul(several, held), mul(several, sub(1, held))

    u = low.add_value(f"{up.source}/band", "temporary", mul(least(add(rows, 2 * first.half), height), width, up.out))
    band = Picture(u, height, width, up.out, first_row=FIRST)
    s, u_kept, x_kept = _shared_buffer(low, s_value, (x, band), (up, first, shortcut), (copied, repeated))
    stats = new_stats(low, norm, bands, first.source)

    with low.loop(height, rows):
        emit_conv(low, up, x, band, upsample=True)
        emit_stats(low, norm, band, stats, (FIRST, END), first.source)
        emit_copy(low, band, u_kept, (FIRST, END), copied, up.source)
    silu = attribute(node, "norm") == "affine_silu"
    factors = emit_affine(low, norm, stats, bands, up.out, silu, first.source)
    with low.loop(x.height, band_rows(x.height, x.row)):
        emit_copy(low, x, x_kept, (FIRST, END), repeated, up.source)

    h = picture(low, low.result(h_value, (0, 2, 3, 1)))
    above, below = most(sub(FIRST, first.half), 0), least(add(END, first.half), height)
    around = band._replace(first_row=above)  # of a single band this is what the first loop left
    with low.loop(height, rows):
        emit_conv(low, up, x_kept, around, (above, below), upsample=True, when=repeated)
        emit_copy(low, u_kept, around, (above, below), copied, up.source)
        emit_conv(low, first, around, h, factors=factors)
        emit_pointwise(low, shortcut, around, s)


def _shared_buffer(
    low: Lowering,
    s_value: ir.Value,
    sources: tuple[Picture, Picture],
    kernels: tuple[Kernel, Kernel, Kernel],
    flags: tuple[Expression, Expression],
) -> tuple[Picture, Picture, Picture]:
    """s in a new buffer, and u and x as they lie at its end where `flags` (u copied, u repeated) are 1.

    When s is written up to row r, the next band asks for rows of u from r − half on, or for the rows of x
    that those need. So u and x end with s or after it, as many rows later as that reaches back; if they are
    the longer ones, they start so many rows after s does.
    """
    (x, u), (up, first, shortcut) = sources, kernels
    pixels = mul(x.height, x.width)  # s and u have four times as many
    u_start = add(mul(pixels, 4 * max(shortcut.out - up.out, 0)), mul(u.row, first.half))
    x_rows = -(-(first.half + up.half + 1) // 2)
    x_start = add(mul(pixels, max(4 * shortcut.out - up.into, 0)), mul(x.row, x_rows))
    tails = [
        mul(flag, add(start, p.elements)) for flag, start, p in zip(flags, (u_start, x_start), (u, x), strict=True)
    ]
    s = u._replace(channels=shortcut.out, first_row=0)
    s = s._replace(value=low.add_value(s_value.name, "temporary", most(s.elements, most(*tails))))
    shape = shape_of(s_value)
    stored = View.contiguous(s.value, tuple(shape[axis] for axis in (0, 2, 3, 1)))
    low.views[s_value.name] = stored.transpose([0, 3, 1, 2])
    return s, u._replace(value=s.value, start=u_start, first_row=0), x._replace(value=s.value, start=x_start)
