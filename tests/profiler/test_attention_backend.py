"""The choice of attention's kernel, compared with torch's own choice on the CPU.

For CPU tensors torch has the same checks of shapes, strides, heads and masks, and one fused kernel.
Rules that only CUDA has are judged by rows derived by hand from sdp_utils.cpp.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from optprof.profiler.tracing.attention_backend import AttentionCall, Backend, choose

HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
FUSED_ON_CPU = 1
MASKS = (
    *((16, 16), (1, 16), (16, 1), (8, 16), (4, 16, 16)),
    *((2, 4, 16, 16), (1, 1, 16, 16), (2, 1, 1, 16), (2, 3, 16, 16)),
)


def operand(
    *shape: int,
    dtype: torch.dtype,
    layout: str = "dense",
    trains: bool = True,
) -> torch.Tensor:
    """Return a CPU tensor: "heads last" as projections make it, "width first" with no dense row."""
    if layout == "heads last":
        batch, heads, tokens, width = shape
        tensor = torch.empty(batch, tokens, heads, width, dtype=dtype).transpose(1, 2)
    elif layout == "width first":
        tensor = torch.empty(*shape[:-2], shape[-1], shape[-2], dtype=dtype).mT
    else:
        tensor = torch.empty(shape, dtype=dtype)
    return tensor.requires_grad_(trains)


def call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    capability: tuple[int, int] = (9, 0),
    **options: Any,
) -> AttentionCall:
    """Return a call under torch's default settings; options replace them."""
    arguments = {"dropout": 0.0, "is_causal": False, "enable_gqa": False}
    usual = AttentionCall.now(query, key, value, mask, capability=capability, **arguments)
    return replace(usual, **options)


def is_fused_on_cpu(*tensors: torch.Tensor | None, **options: Any) -> bool:
    return torch.ops.aten._fused_sdp_choice(*tensors, **options) == FUSED_ON_CPU


def shapes() -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Yield queries, keys and values with grouped, broadcast and different sizes."""
    heads_of_both = (4, 4), (2, 2), (1, 1), (2, 1), (4, 2), (3, 3)
    for heads, batch, tokens, width in product(heads_of_both, (2, 1), (16, 0), (16, 8)):
        yield (2, 4, 16, 16), (batch, heads[0], tokens, 16), (batch, heads[1], tokens, width)
    yield (2, 16, 16), (2, 16, 16), (2, 16, 16)
    yield (2, 4, 0, 16), (2, 4, 16, 16), (2, 4, 16, 16)


@pytest.mark.parametrize("layout", ["dense", "heads last", "width first"])
@pytest.mark.parametrize(
    ("backend", "dtype", "gpu", "gqa"),
    [
        ("flash", HALF, (8, 0), False),
        ("flash", HALF, (8, 0), True),
        ("flash", torch.float16, (9, 0), True),
        ("efficient", SINGLE, (8, 0), False),
    ],
)
def test_shapes_and_strides_are_taken_where_torch_takes_them(
    backend: Backend, dtype: torch.dtype, gpu: tuple[int, int], layout: str, gqa: bool
):
    options: Any = {"capability": gpu, "enabled": frozenset((backend, "math")), "enable_gqa": gqa}
    outcomes = set()
    for query, key, value in shapes():
        if len(query) == 3 and layout == "heads last":
            continue
        if backend == "efficient" and value[-1] != query[-1]:
            continue  # The efficient kernel takes it, torch on the CPU does not.
        q, k, v = (operand(*shape, dtype=dtype, layout=layout) for shape in (query, key, value))
        expected = is_fused_on_cpu(q, k, v, None, enable_gqa=gqa)
        chosen = choose(call(q, k, v, None, **options))
        assert (chosen == backend) is expected, (query, key, value)
        outcomes.add(expected)
    assert outcomes == ({True, False} if layout != "width first" else {False})


@pytest.mark.parametrize(
    ("dtype", "trains"),
    [(torch.bool, False), (HALF, False), (HALF, True)],
)
def test_cudnn_takes_the_masks_that_torch_takes_on_the_cpu(dtype: torch.dtype, trains: bool):
    query, key, value = (operand(2, 4, 16, 16, dtype=HALF) for _ in range(3))
    enabled = frozenset(("cudnn", "math"))
    outcomes = set()
    for shape in MASKS:
        mask = torch.empty(shape, dtype=dtype).requires_grad_(trains)
        expected = is_fused_on_cpu(query, key, value, mask)
        chosen = choose(call(query, key, value, mask, enabled=enabled))
        assert (chosen == "cudnn") is expected, shape
        outcomes.add(expected)
    assert outcomes == ({False} if trains else {True, False})


def plain(
    dtype: torch.dtype = HALF,
    *,
    width: int = 64,
    value_width: int | None = None,
    heads: tuple[int, int] = (4, 4),
    tokens: tuple[int, int] = (128, 128),
    mask: torch.dtype | None = None,
    trains: bool = True,
    **options: Any,
) -> AttentionCall:
    query = operand(2, 4, tokens[0], width, dtype=dtype, trains=trains)
    key = operand(2, heads[0], tokens[1], width, dtype=dtype, trains=trains)
    value = operand(2, heads[1], tokens[1], value_width or width, dtype=dtype, trains=trains)
    bias = None if mask is None else torch.empty(1, 1, *tokens, dtype=mask)
    return call(query, key, value, bias, **options)


P40, V100, T4, A100, RTX3090, ADA = (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9)
H100, B200, B300, RTX5090, GB10 = (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)

ROWS: list[tuple[tuple[int, int], dict[str, Any], str]] = [
    # check_prefer_cudnn_attention: Hopper, B200, B300
    *((gpu, {}, "cudnn") for gpu in (H100, B200, B300)),
    *((gpu, {}, "flash") for gpu in (A100, RTX3090, ADA, RTX5090, GB10)),
    # cuDNN takes a mask, flash does not.
    *((gpu, {"mask": torch.bool}, "cudnn") for gpu in (H100, B200)),
    *((gpu, {"mask": mask}, "efficient") for gpu in (A100, RTX5090) for mask in (torch.bool, HALF)),
    # The efficient kernel takes float32, with a mask or without, causal or not.
    *((gpu, {"dtype": SINGLE}, "efficient") for gpu in (T4, A100, H100)),
    *((gpu, {"dtype": SINGLE, "mask": torch.bool}, "efficient") for gpu in (T4, A100, H100)),
    (H100, {"dtype": SINGLE, "is_causal": True}, "efficient"),
    (H100, {"dtype": DOUBLE}, "math"),
    # check_dtypes_low_precision and the hardware before Ampere
    (T4, {"dtype": torch.float16}, "efficient"),
    (V100, {"dtype": torch.float16}, "efficient"),
    (T4, {"dtype": HALF}, "math"),
    (P40, {"dtype": torch.float16}, "efficient"),
    # check_batch_size_and_num_heads_dense: without enable_gqa, math takes broadcast heads.
    *((gpu, {"heads": (1, 1)}, "math") for gpu in (A100, H100)),
    (A100, {"heads": (2, 2), "enable_gqa": True}, "flash"),
    (H100, {"heads": (2, 2), "enable_gqa": True}, "cudnn"),
    (H100, {"heads": (3, 3), "enable_gqa": True}, "math"),
    (H100, {"heads": (2, 1), "enable_gqa": True}, "cudnn"),
    (A100, {"heads": (2, 1), "enable_gqa": True}, "math"),
    (H100, {"dtype": SINGLE, "heads": (2, 2), "enable_gqa": True}, "math"),
    (H100, {"dtype": SINGLE, "enable_gqa": True}, "efficient"),
    (A100, {"heads": (2, 2), "enable_gqa": True, "mask": torch.bool}, "math"),
    # Flash needs equal widths, the efficient kernel and cuDNN do not.
    (A100, {"value_width": 32}, "efficient"),
    (H100, {"value_width": 32}, "cudnn"),
    (H100, {"dtype": SINGLE, "value_width": 32}, "efficient"),
    (A100, {"width": 256}, "flash"),
    (A100, {"width": 264}, "efficient"),
    (H100, {"width": 256}, "cudnn"),
    (H100, {"width": 264}, "efficient"),
    (B200, {"width": 136}, "flash"),
    (B200, {"width": 192, "value_width": 128}, "cudnn"),
    (H100, {"width": 192, "value_width": 128}, "cudnn"),
    (A100, {"width": 192, "value_width": 128}, "efficient"),
    # Rows of 16 bytes: flash pads, the efficient kernel and cuDNN refuse.
    (H100, {"width": 60}, "flash"),
    (H100, {"width": 60, "mask": HALF}, "math"),
    (H100, {"dtype": SINGLE, "width": 60}, "efficient"),
    (H100, {"dtype": SINGLE, "width": 62}, "math"),
    (T4, {"dtype": SINGLE, "width": 62}, "efficient"),
    (T4, {"dtype": torch.float16, "width": 60}, "math"),
    (P40, {"dtype": torch.float16, "width": 60}, "efficient"),
    # Flash's backward pass of wide heads on consumers' cards.
    *((gpu, {"width": 200}, "efficient") for gpu in (RTX3090, ADA, RTX5090, GB10)),
    (A100, {"width": 200}, "flash"),
    (ADA, {"width": 192}, "flash"),
    (ADA, {"width": 200, "trains": False}, "flash"),
    (ADA, {"width": 200, "grad_enabled": False}, "flash"),
    (ADA, {"width": 256}, "flash"),
    (ADA, {"width": 256, "dropout": 0.1}, "efficient"),
    # check_flash_causal_non_square_seqlens
    (A100, {"tokens": (64, 128), "is_causal": True}, "efficient"),
    (A100, {"tokens": (64, 128)}, "flash"),
    (H100, {"tokens": (64, 128), "is_causal": True}, "cudnn"),
    # cuDNN takes multiples of 1/16 for dropout, and neither one key nor one query with dropout.
    (H100, {"dropout": 0.1}, "flash"),
    (H100, {"dropout": 0.125}, "cudnn"),
    (H100, {"dropout": 0.1, "mask": torch.bool}, "efficient"),
    (H100, {"tokens": (128, 1)}, "flash"),
    (H100, {"tokens": (1, 128)}, "cudnn"),
    (H100, {"tokens": (1, 128), "dropout": 0.5}, "flash"),
    # No keys
    (H100, {"tokens": (128, 0)}, "math"),
    # An MI300X has no cuDNN; its flash takes 512.
    ((9, 4), {"width": 512}, "flash"),
]


@pytest.mark.parametrize(("gpu", "options", "expected"), ROWS)
def test_the_rules_of_sdp_utils(gpu: tuple[int, int], options: dict[str, Any], expected: str):
    assert choose(plain(capability=gpu, **options)) == expected


def test_the_next_backend_replaces_one_that_is_switched_off():
    def chosen(*enabled: Backend) -> str:
        return choose(plain(enabled=frozenset(enabled)))

    assert chosen("flash", "efficient", "math") == "flash"
    assert chosen("efficient", "math") == "efficient"
    assert chosen("math") == "math"
    assert choose(plain(mask=HALF, enabled=frozenset(("flash",)))) == "error"
    assert chosen() == "error"


def test_flash_replaces_cudnn_if_results_must_be_deterministic():
    assert choose(plain(deterministic=True)) == "flash"


def test_torch_s_switches_are_respected():
    usual = plain()
    assert usual.enabled == {"cudnn", "flash", "efficient", "math"}
    assert usual.order is None
    assert not usual.deterministic
    with sdpa_kernel([SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION], set_priority=True):
        switched = plain()
    assert switched.enabled == {"math", "efficient"}
    assert switched.order is not None
    assert switched.order[:2] == ("math", "efficient")
    assert choose(switched) == "math"
    assert plain() == usual


@pytest.mark.parametrize(("warn_only", "expected"), [(False, True), (True, False)])
def test_determinism_that_only_warns_has_no_effect(warn_only: bool, expected: bool):
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        assert plain().deterministic is expected
    finally:
        torch.use_deterministic_algorithms(False)
