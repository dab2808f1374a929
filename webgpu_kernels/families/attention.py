"""Attention: softmax(q·kᵀ·SCALE)·v without ever holding the scores of a whole row.

HEAD_SIZE must be a multiple of 4 up to 512, HEADS one of KV_HEADS, and all offsets and strides multiples
of 4: views are read as vec4f. Query head h reads key head h // (HEADS // KV_HEADS). With the causal mask
query i sees key j where j <= i and key_mask[j] is not 0; a query that sees no key gives zeros.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from webgpu_kernels.registry import MATRIX_FEATURE, Binding, Case, Groups, Kernel, Options, Variant, register
from webgpu_kernels.strided import gather, guarded, scatter

LARGE = 41_000.0  # magnitude that residual streams of the networks reach

# Rounding q, k and v to f16, and nothing else, makes an error of 3.1e-3 in the case of large scores (elsewhere 4e-4).
_F16_ERROR = 4e-3

_OPERANDS = ("q", "k", "v", "y")


@dataclass(frozen=True, slots=True)
class StagedAttention:
    """What `wgsl/attention_staged.wgsl` does with heads of at most 128 channels; larger ones take 4 threads down.

    Its workgroups are `down` times HEAD_SIZE / 8 threads for 8 `down` queries. They stage 4 `fours` channels of
    queries and keys, `v_keys` rows of values and the weights of 4 `p_fours` keys at once. With `prefetch` the next
    operands are read from their buffers while the present ones are multiplied.
    """

    operand: str = "f32"
    down: int = 8
    fours: int = 4
    v_keys: int = 16
    p_fours: int = 8
    prefetch: bool = False

    def context(self) -> dict[str, Any]:
        return asdict(self)

    def groups(self) -> Groups:
        down = ["add", 4, ["mul", self.down - 4, ["min", 1, ["floor_div", 128, "HEAD_SIZE"]]]]
        return ["ceil_div", "q_tokens", ["mul", 8, down]], "HEADS", 1

    def workgroup_bytes(self, head_size: int) -> int:
        """What `attention_staged.wgsl` declares; the same sums."""
        small, across = head_size <= 128, 8 * -(-head_size // 64)
        down, fours, v_keys = (self.down, self.fours, self.v_keys) if small else (4, 2, 4)
        stage = max((8 * down + 4 * across) * fours, 2 * across * v_keys, 2 * across * down)
        weights = max(self.p_fours * 8 * down, 2 * across * down if self.operand == "f16" else 0)
        return stage * (8 if self.operand == "f16" else 16) + weights * 16


@dataclass(frozen=True, slots=True)
class MatrixAttention:
    """What `wgsl/attention_matrix.wgsl` does: `subgroups` of 32 queries each walk over all keys, `keys` at a time.

    Heads have `channels` channels. `growth` is how far scores, in powers of 2, may exceed a row's top; f16 ends at 16.
    """

    subgroups: int = 8
    keys: int = 32
    growth: int = 14
    channels: int = 128

    def context(self) -> dict[str, Any]:
        return asdict(self)

    def groups(self) -> Groups:
        return ["ceil_div", "q_tokens", 32 * self.subgroups], "HEADS", 1

    def workgroup_bytes(self) -> int:
        staged_k, staged_v = self.keys * (2 * self.channels + 16), self.channels * (2 * self.keys + 16)
        return staged_k + staged_v + 32 * self.subgroups * 80


# Of `wgsl/attention_wide.wgsl`, as of StagedAttention; the limit below is what they need.
_WIDE = {"down": 8, "fours": 4, "v_keys": 16, "p_fours": 8}
_BYTES = {"down": 8}  # of `wgsl/attention_bytes.wgsl`: fours of queries of a workgroup
_MATRIX = MatrixAttention()
_STAGED = StagedAttention()
_STAGED_F16 = StagedAttention(operand="f16")


def _elements(options: Options) -> dict[str, str]:
    return dict.fromkeys(_OPERANDS, "vec4f")


def _view(uniforms, operand: str) -> tuple[int, tuple[int, int, int]]:
    return uniforms[f"{operand}_offset"], (uniforms[f"{operand}_stride"], uniforms[f"{operand}_head_stride"], 1)


def _reference(inputs, options, constants, uniforms, outputs) -> dict[str, np.ndarray]:
    queries, keys = uniforms["q_tokens"], uniforms["kv_tokens"]
    heads, kv_heads, size = constants["HEADS"], constants["KV_HEADS"], constants["HEAD_SIZE"]

    def operand(name: str, tokens: int, operand_heads: int) -> np.ndarray:
        offset, strides = _view(uniforms, name)
        return gather(inputs[name], offset, (tokens, operand_heads, size), strides).transpose(1, 0, 2)

    q = operand("q", queries, heads)
    k, v = (np.repeat(operand(name, keys, kv_heads), heads // kv_heads, axis=0) for name in ("k", "v"))
    scores = q @ k.transpose(0, 2, 1) * constants["SCALE"]
    seen = np.ones((queries, keys), dtype=bool)
    if options["mask"] == "causal":
        seen = np.tri(queries, keys, dtype=bool) & (inputs["key_mask"][:keys] != 0)
    scores = np.where(seen, scores, -np.inf)
    top = np.maximum(scores.max(axis=2, keepdims=True), -1e300)
    weights = np.exp(scores - top)
    sums = weights.sum(axis=2, keepdims=True)
    y = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0) @ v
    offset, strides = _view(uniforms, "y")
    return {"y": scatter(outputs["y"], offset, strides, y.transpose(1, 0, 2))}


def _case(
    name: str,
    queries: int,
    keys: int,
    heads: tuple[int, int] = (1, 1),
    size: int = 64,
    key_mask: np.ndarray | None = None,
    magnitudes: tuple[float, float] = (1.0, 1.0),  # of q and k, of v
    error: float = 1e-5,
) -> Case:
    """q, k and v, up to 3 `magnitudes`, are columns of one wide row, as the fused projection writes them.

    y has heads outermost.
    """
    random = np.random.default_rng(11)
    heads, kv_heads = heads
    uniforms = {"q_tokens": queries, "kv_tokens": keys}
    inputs = {}
    for operand, tokens, operand_heads, gap, magnitude in (
        ("q", queries, heads, 8, magnitudes[0]),
        ("k", keys, kv_heads, 12, magnitudes[0]),
        ("v", keys, kv_heads, 4, magnitudes[1]),
    ):
        strides = (operand_heads * (size + 4) + gap, size + 4, 1)
        values = random.standard_normal((tokens, operand_heads, size)).clip(-3, 3) * magnitude
        uniforms |= {f"{operand}_offset": gap, f"{operand}_stride": strides[0], f"{operand}_head_stride": size + 4}
        inputs[operand] = guarded(gap + tokens * strides[0], gap, strides, values)
    uniforms |= {"y_offset": 16, "y_stride": size, "y_head_stride": queries * size + 4}
    options = {"mask": "none"}
    if key_mask is not None:
        options = {"mask": "causal"}
        inputs["key_mask"] = key_mask.astype(np.uint32)
    constants = {"HEADS": heads, "KV_HEADS": kv_heads, "HEAD_SIZE": size, "SCALE": size**-0.5}
    outputs = {"y": 16 + heads * uniforms["y_head_stride"]}
    return Case(name, options, constants, uniforms, inputs, outputs, error)


def _cases() -> list[Case]:
    padded = np.ones(77)
    padded[50:] = 0
    holes = np.arange(45) % 3 != 1
    unseen = np.arange(40) >= 5
    return [
        _case("many_tokens", 200, 330, (3, 3), 128),
        _case("many_tokens_64", 330, 200, (2, 1), 64),
        _case("one_token", 1, 1, size=4),
        _case("one_token_128", 1, 1, (1, 1), 128),
        _case("few_tokens", 3, 3, (2, 2), 64),
        _case("odd_tokens", 77, 77, (3, 3), 128),
        _case("more_keys", 33, 131, (2, 1), 96),
        _case("more_keys_128", 33, 131, (4, 2), 128),
        _case("more_queries", 65, 7, (4, 2), 64),
        _case("uneven_head", 37, 29, (2, 2), 36),
        _case("large_head", 40, 101, (1, 1), 512),
        _case("middle_head", 5, 130, (1, 1), 384),
        _case("large_values", 40, 40, (1, 1), 128, magnitudes=(1.0, LARGE / 3)),
        # scores of some hundreds: the softmax picks single keys, and one rounding of a score shows
        _case("large_scores", 40, 77, (1, 1), 128, magnitudes=(6.0, 1.0), error=5e-5),
        _case("causal", 45, 45, (3, 3), 128, np.ones(45)),
        _case("causal_padded_grouped", 77, 77, (4, 2), 128, padded),
        _case("causal_holes", 45, 45, (2, 1), 64, holes),
        _case("causal_unseen", 40, 40, (1, 1), 32, unseen),
        _case("causal_one_token", 1, 1, (1, 1), 64, np.ones(1)),
        _case("causal_large_head", 35, 35, (1, 1), 512, np.ones(35)),
    ]


_PLAIN_GROUPS = (["ceil_div", "q_tokens", 32], "HEADS", 1)

ATTENTION = register(
    Kernel(
        name="attention",
        bindings=(
            Binding("q"),
            Binding("k"),
            Binding("v"),
            Binding("key_mask", dtype="u32", when={"mask": ("causal",)}),
            Binding("y", "read_write"),
        ),
        constants={"HEADS": "u32", "KV_HEADS": "u32", "HEAD_SIZE": "u32", "SCALE": "f32"},
        uniforms={
            "q_tokens": "u32",
            "kv_tokens": "u32",
            **{f"{name}_{part}": "u32" for name in _OPERANDS for part in ("offset", "stride", "head_stride")},
        },
        options={"mask": ("none", "causal")},
        variants=(
            Variant("f32", "attention.wgsl", _PLAIN_GROUPS, context={"quads": False}, elements=_elements),
            Variant(
                "f32_quads",
                "attention.wgsl",
                _PLAIN_GROUPS,
                features=("subgroups",),
                context={"quads": True},
                elements=_elements,
                default=False,
                software=True,
            ),
            Variant(
                "f32_staged", "attention_staged.wgsl", _STAGED.groups(), context=_STAGED.context(), elements=_elements
            ),
            Variant(
                "f32_wide",
                "attention_wide.wgsl",
                (["ceil_div", "q_tokens", 8 * _WIDE["down"]], "HEADS", 1),
                limits={"maxComputeWorkgroupStorageSize": 20_480},
                when={"mask": ("none",)},
                fixed={"HEAD_SIZE": 128},
                context=_WIDE,
                elements=_elements,
            ),
            Variant(
                "f16",
                "attention_staged.wgsl",
                _STAGED_F16.groups(),
                features=("shader-f16",),
                context=_STAGED_F16.context(),
                elements=_elements,
                error=_F16_ERROR,
            ),
            Variant(
                "int8",
                "attention_bytes.wgsl",
                (["ceil_div", "q_tokens", 4 * _BYTES["down"]], "HEADS", 1),
                when={"mask": ("none",)},
                fixed={"HEAD_SIZE": 128},
                language_features=("packed_4x8_integer_dot_product",),
                converts={"q": "int8_heads", "k": "int8_heads", "v": "int8_heads_turned"},
                context=_BYTES,
                elements=lambda options: {
                    **dict.fromkeys(("q", "k", "v"), "vec4u"),
                    **dict.fromkeys(("q_scales", "k_scales", "v_scales", "y"), "vec4f"),
                },
                error=3e-2,
            ),
            Variant(
                "matrix_f16",
                "attention_matrix.wgsl",
                _MATRIX.groups(),
                features=("shader-f16", "subgroups", MATRIX_FEATURE),
                limits={"maxComputeWorkgroupStorageSize": _MATRIX.workgroup_bytes()},
                matrix=("f16", "f32", 16, 16, 16),
                when={"mask": ("none",)},
                fixed={"HEAD_SIZE": _MATRIX.channels},
                converts={"k": "f16_heads", "v": "f16_heads_turned"},
                context=_MATRIX.context(),
                elements=lambda options: {"q": "vec4f", "k": "vec4u", "v": "vec4u", "y": "vec4f"},
                error=_F16_ERROR,
            ),
        ),
        reference=_reference,
        cases=_cases,
    )
)
