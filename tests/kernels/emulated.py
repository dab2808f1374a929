"""`linear_matrix.wgsl`, `conv2d_matrix.wgsl` and `attention_matrix.wgsl` for adapters without subgroup matrices: the
same texts with the matrices' functions written out.

Each of a subgroup's 32 threads holds 8 elements of a result, and operands are read from workgroup memory where they
are multiplied. So everything of the shader but the matrix functions themselves is tried: what is staged where, which
parts a subgroup multiplies, edges, scales and bias.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from exporter.expressions import evaluate
from webgpu_kernels import Case, Rendered, render
from webgpu_kernels.families.attention import MatrixAttention

# Small tiles, since software adapters have little workgroup memory: one of two fragments a subgroup, one of two rows of
# fragments.
TILES = (
    {"tile_rows": 32, "tile_columns": 32, "sub_rows": 16, "sub_columns": 32},
    {"tile_rows": 32, "tile_columns": 32, "sub_rows": 32, "sub_columns": 16},
)

FUNCTIONS = """
fn element(at: u32, i: u32) -> SUM {
    let word = staged[at + i / QUADu][i % QUADu / PERu];
    return ELEMENT;
}

fn multiply(sum: ptr<function, Sum>, left: vec2u, right: vec2u) {
    for (var n = 0u; n < 8u * DEPTHu; n++) {
        let column = own_lane % 2u * 8u + n % 8u;
        let value = element(left.x + own_lane / 2u * left.y, n / 8u);
        (*sum)[n % 8u] += value * element(right.x + column * right.y, n / 8u);
    }
}

fn store_staged(at: u32, sum: Sum, stride: u32) {
    var own = sum;
    for (var c = 0u; c < 8u; c++) {
        staged[at + own_lane / 2u * stride + own_lane % 2u * 2u + c / 4u][c % 4u] = bitcast<u32>(own[c]);
    }
}

fn store_y(at: u32, sum: Sum, stride: u32) {
    var own = sum;
    for (var c = 0u; c < 8u; c++) {
        y[at + own_lane / 2u * stride + own_lane % 2u * 8u + c] = f32(own[c]);
    }
}
"""

OPERANDS = {
    "f16": {"SUM": "f32", "DEPTH": "16", "QUAD": "8", "PER": "2", "ELEMENT": "unpack2x16float(word)[i % 2u]"},
    "int8": {"SUM": "i32", "DEPTH": "32", "QUAD": "16", "PER": "4", "ELEMENT": "unpack4xI8(word)[i % 4u]"},
}

# What stands in the template -> what stands for it.
REPLACED = {
    r"enable chromium_experimental_subgroup_matrix;|enable subgroups;|diagnostic\(off[^;]*;": "",
    r"alias Left = [^;]*;": "var<private> own_lane: u32;",
    r"alias Right = [^;]*;": "",
    r"alias Sum = [^;]*;": "alias Sum = array<SUM, 8>;",
    r"let lane = thread % 32u;\n    let sub_row = subgroup / ": r"own_lane = thread % 32u;\n    \g<0>",
    r"subgroupMatrixLoad<\w+, \w+>\(&staged, ": "vec2u(",
    r"(\w+) = subgroupMatrixMultiplyAccumulate\((\w+), (\w+), \w+\);": r"multiply(&\1, \2, \3);",
    r"subgroupMatrixStore<row_major>\(&(\w+), ": r"store_\1(",
}

# Of conv2d_matrix.wgsl, in the same way: every number of taps, buffers, subgroups; with prefetch and without.
CONV_TILES = (
    {"tile_rows": 2, "sub_rows": 1, "sub_columns": 32, "taps": 1, "stages": 2, "prefetch": False},
    {"tile_rows": 2, "sub_rows": 2, "sub_columns": 16, "taps": 1, "stages": 1, "prefetch": True},
    {"tile_rows": 4, "sub_rows": 2, "sub_columns": 32, "depth": 16, "taps": 3, "stages": 2, "prefetch": True},
    {"tile_rows": 2, "sub_rows": 1, "sub_columns": 16, "depth": 16, "taps": 3, "stages": 1, "prefetch": False},
)

# Of attention_matrix.wgsl. Left sides are held (q stays there while its place gets k), right sides are read where they
# are multiplied; and since threads do not run in step here, they meet in `together`, a whole workgroup at a time.
# Only the first channels of each head are computed, as the driver takes minutes to compile more.
ATTENTION = {"subgroups": 2, "channels": 32}
ATTENTION_REPLACED = {
    r"enable f16;|enable chromium_experimental_subgroup_matrix;|enable subgroups;|diagnostic\(off[^;]*;": "",
    r"let subgroup = thread / 32u;": "let subgroup = thread / 32u;\n    own_lane = thread % 32u;",
    r"fn together\(\) \{": "fn together() {\n    workgroupBarrier();",
    r"subgroupAny\(": "any_of(",
    r"subgroupMatrixLoad<subgroup_matrix_result<f32, 16, 16>, row_major>\(&scores, ": "load_sum(",
    r"subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>\(&(\w+), ": r"load_left_\1(",
    r"subgroupMatrixLoad<[^(]*\(&\w+, ": "vec2u(",
    r"(s\d) = subgroupMatrixMultiplyAccumulate\((\w+), (\w+), \w+\);": r"add_scores(&\1, \2, \3);",
    r"(y\d_\d) = subgroupMatrixMultiplyAccumulate\((\w+), (\w+), \w+\);": r"add_values(&\1, \2, \3);",
    r"subgroupMatrixStore<row_major>\(&scores, ": "store_scores(",
    r"subgroup_matrix_result<f32, 16, 16>": "array<f32, 8>",
    r"subgroup_matrix_left<f16, 16, 16>": "array<f32, 16>",
}
LOAD_LEFT = """
fn load_left_NAME(at: u32, stride: u32) -> array<f32, 16> {
    var own: array<f32, 16>;
    for (var i = 0u; i < 16u; i++) {
        own[i] = unpack2x16float(NAME[at + own_lane / 2u * stride + i / 8u][i / 2u % 4u])[i % 2u];
    }
    return own;
}
"""
# sum += left · right, with right by columns, as it is staged.
ADD = """
fn add_NAME(sum: ptr<function, array<f32, 8>>, left: array<f32, 16>, right: vec2u) {
    var own = left;
    for (var n = 0u; n < 128u; n++) {
        let i = n / 8u;
        let at = right.x + (own_lane % 2u * 8u + n % 8u) * right.y;
        (*sum)[n % 8u] += own[i] * unpack2x16float(STAGED[at + i / 8u][i / 2u % 4u])[i % 2u];
    }
}
"""
ATTENTION_FUNCTIONS = f"""
var<private> own_lane: u32;
var<workgroup> votes: atomic<u32>;
{LOAD_LEFT.replace("NAME", "staged_k")}
{LOAD_LEFT.replace("NAME", "scores")}
{ADD.replace("NAME", "scores").replace("STAGED", "staged_k")}
{ADD.replace("NAME", "values").replace("STAGED", "staged_v")}"""
ATTENTION_FUNCTIONS += """
fn any_of(vote: bool) -> bool {
    atomicOr(&votes, u32(vote));
    let found = workgroupUniformLoad(&votes);
    atomicStore(&votes, 0u);
    workgroupBarrier();
    return found != 0u;
}

fn store_scores(at: u32, sum: array<f32, 8>, stride: u32) {
    var own = sum;
    for (var c = 0u; c < 8u; c++) {
        scores[at + own_lane / 2u * stride + own_lane % 2u * 2u + c / 4u][c % 4u] = bitcast<u32>(own[c]);
    }
}

fn load_sum(at: u32, stride: u32) -> array<f32, 8> {
    var own: array<f32, 8>;
    for (var c = 0u; c < 8u; c++) {
        own[c] = bitcast<f32>(scores[at + own_lane / 2u * stride + own_lane % 2u * 2u + c / 4u][c % 4u]);
    }
    return own;
}
"""


def narrow(case: Case) -> Case:
    """A case of attention whose heads have as many channels as are emulated."""
    return replace(case, constants={**case.constants, "HEAD_SIZE": ATTENTION["channels"]})


def attention_text() -> str:
    """`attention_matrix.wgsl` without matrices, for heads of 32 channels; it needs nothing beyond core WebGPU.

    Raises:
        ValueError: the shader has a matrix function that this module does not know.
    """
    text = render("attention", {}, "matrix_f16", ATTENTION).wgsl
    for pattern, replacement in ATTENTION_REPLACED.items():
        text = re.sub(pattern, replacement, text)
    if "subgroup_matrix" in text or "subgroupMatrix" in text:
        raise ValueError("attention_matrix.wgsl: expected only matrix functions that are emulated")
    return text + ATTENTION_FUNCTIONS


def emulated_attention(case: Case, job: dict[str, Any]) -> dict[str, Any]:
    """As `emulated`, of a `narrow` case of attention."""
    numbers = MatrixAttention(**ATTENTION)
    groups = [evaluate(count, {**case.constants, **case.uniforms}) for count in numbers.groups()]
    changed = {"wgsl": attention_text(), "file": "emulated attention_matrix.wgsl", "groups": groups}
    return {**job, **changed, "features": [], "limits": {}}


def _without_matrices(text: str, operand: str, label: str) -> str:
    functions = FUNCTIONS
    for pattern, replacement in REPLACED.items():
        text = re.sub(pattern, replacement, text)
    for name, value in OPERANDS[operand].items():
        text = text.replace(f"array<{name}, 8>", f"array<{value}, 8>")
        functions = functions.replace(name, value)
    if "subgroup_matrix" in text or "subgroupMatrix" in text:
        raise ValueError(f"{label}: expected only matrix functions that are emulated")
    return text + functions


def emulated_conv(rendered: Rendered, case: Case, job: dict[str, Any], tile: Mapping[str, Any]) -> dict[str, Any]:
    """As `emulated`, of a case of conv2d, with one of CONV_TILES."""
    small = render(rendered.kernel, case.options, rendered.variant.name, {"tile_columns": 32, **tile})
    text = _without_matrices(small.wgsl, "f16", job["label"])
    groups = [evaluate(count, {**case.constants, **case.uniforms}) for count in small.groups]
    features = [name for name in job["features"] if name == "shader-f16"]
    return {**job, "wgsl": text, "file": f"emulated {small.file}", "groups": groups, "limits": {}, "features": features}


def emulated(rendered: Rendered, case: Case, job: dict[str, Any]) -> dict[str, Any]:
    """The job of a case, made for `rendered`, with a shader that needs no subgroup matrices.

    Raises:
        ValueError: the shader has a matrix function that this module does not know.
    """
    tile = TILES[case.uniforms["rows"] % 2]
    operand = rendered.variant.context["operand"]
    depth = 32 if operand == "f16" else 64
    small = render(rendered.kernel, case.options, rendered.variant.name, {**tile, "depth": depth})
    groups = [evaluate(count, {**case.constants, **case.uniforms}) for count in small.groups]
    features = [name for name in job["features"] if name == "shader-f16"]
    text = _without_matrices(small.wgsl, operand, job["label"])
    return {**job, "wgsl": text, "file": f"emulated {small.file}", "groups": groups, "limits": {}, "features": features}
