"""The bytes of attention's paths, compared with real steps of that path on the CPU and by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention

from optprof.profiler.tracing.kernels import cuda_kernels
from optprof.profiler.tracing.trace import Recorder

BATCH, HEADS, TOKENS, WIDTH = 2, 4, 128, 32
A100 = (8, 0)
# Scalars of at most 512 bytes: Python's numbers on the CPU, and scalars on the device.
SMALL = 64
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Make = Callable[[], tuple[Tensors, torch.Tensor | None]]


def operands(
    *,
    heads: int = HEADS,
    value_width: int = WIDTH,
    tokens: int = TOKENS,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """Return query, key and value as leaves on the default device."""

    def leaf(count: int, width: int) -> torch.Tensor:
        return torch.zeros(BATCH, count, tokens, width, dtype=dtype, requires_grad=True)

    return leaf(HEADS, WIDTH), leaf(heads, WIDTH), leaf(heads, value_width)


def step(tensors: Tensors, mask: torch.Tensor | None, **options: Any) -> None:
    output = attention(*tensors, mask, **options)
    # A dense gradient, as a projection's is: the CPU's bmm copies a broadcast one.
    output.backward(torch.ones_like(output))


def recorded(make: Make, capability: tuple[int, int] = (9, 0), **options: Any) -> list[int]:
    """Return the bytes of each event of a step on meta tensors, negative for a free."""
    recorder = Recorder()
    with torch.device("meta"), recorder.phase("build"):
        tensors, mask = make()
        for tensor in (*tensors, *(() if mask is None else (mask,))):
            recorder.allocate(tensor, "input")
    recorder.segments.clear()
    with cuda_kernels(capability), recorder.phase("forward"):
        step(tensors, mask, **options)
    sizes, (segment,) = recorder.allocations.nbytes, recorder.segments
    return [sizes[event] if event >= 0 else -sizes[~event] for event in segment.events]


def measured(make: Make, **options: Any) -> list[int]:
    """Return the events of the math kernel's step on the CPU, as torch.profiler sees them."""
    tensors, mask = make()
    activities = [torch.profiler.ProfilerActivity.CPU]
    real = torch.profiler.profile(activities=activities, profile_memory=True)
    with sdpa_kernel(SDPBackend.MATH), real:
        step(tensors, mask, **options)
    assert real.profiler is not None
    assert real.profiler.kineto_results is not None
    events: list[Any] = real.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]"]


def large(events: list[int]) -> list[int]:
    """Return the events without scalars, successive frees sorted by size."""
    tensors = (nbytes for nbytes in events if abs(nbytes) > SMALL)
    runs = groupby(tensors, key=lambda nbytes: nbytes < 0)
    return [nbytes for freed, run in runs for nbytes in (sorted(run) if freed else run)]


@pytest.mark.parametrize(
    ("shapes", "mask", "options"),
    [
        ({"heads": 1}, None, {}),
        ({"heads": 1}, None, {"is_causal": True}),
        ({"heads": 2}, None, {"enable_gqa": True, "is_causal": True}),
        ({"heads": 2}, torch.bool, {"enable_gqa": True}),
        ({"heads": 1}, torch.float32, {"scale": -0.5}),
        ({"heads": 1, "dtype": torch.float64}, torch.bool, {}),
    ],
)
def test_the_math_kernel_has_the_events_that_torch_profiler_saw_on_the_cpu(
    shapes: dict[str, Any], mask: torch.dtype | None, options: dict[str, Any]
):
    def make() -> tuple[Tensors, torch.Tensor | None]:
        return operands(**shapes), None if mask is None else torch.zeros(TOKENS, TOKENS, dtype=mask)

    assert large(recorded(make, **options)) == large(measured(make, **options))


def test_half_precision_is_widened_for_the_math_kernel_unless_switched_off():
    def make() -> tuple[Tensors, torch.Tensor | None]:
        return operands(heads=1, dtype=torch.bfloat16), None

    keys, scores = BATCH * TOKENS * WIDTH, BATCH * HEADS * TOKENS**2
    queries = HEADS * keys
    widened = [4 * queries, 4 * keys, 4 * keys]
    # The scaled query and key, the key again for each head, the scores.
    narrow = [2 * queries, 2 * keys, 2 * queries, 2 * scores]
    assert recorded(make)[: len(widened)] == widened
    assert large(recorded(make)) == large(measured(make))
    with allowing_half_precision():
        assert recorded(make)[: len(narrow)] == narrow


@contextmanager
def allowing_half_precision() -> Iterator[None]:
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


OUTPUT = BATCH * HEADS * TOKENS * WIDTH
SUMS = 4 * BATCH * HEADS * TOKENS


@pytest.mark.parametrize(
    ("mask", "dtype", "capability", "kernel_bytes"),
    [
        # A boolean mask becomes numbers, which outlive the kernel, with two scalars.
        (torch.bool, torch.float32, (9, 0), [4, 4, 4 * TOKENS**2, -4, -4, 4 * OUTPUT, SUMS]),
        (torch.float32, torch.float32, (9, 0), [4 * OUTPUT, SUMS]),
        # cuDNN has a seed and an offset on the device.
        (torch.bool, torch.bfloat16, (9, 0), [2, 2, 2 * TOKENS**2, -2, -2, 2 * OUTPUT, SUMS, 8, 8]),
        (torch.bool, torch.bfloat16, A100, [2, 2, 2 * TOKENS**2, -2, -2, 2 * OUTPUT, SUMS]),
    ],
)
def test_a_boolean_mask_is_kept_as_numbers(
    mask: torch.dtype,
    dtype: torch.dtype,
    capability: tuple[int, int],
    kernel_bytes: list[int],
):
    def make() -> tuple[Tensors, torch.Tensor | None]:
        return operands(dtype=dtype), torch.zeros(1, 1, TOKENS, TOKENS, dtype=mask)

    events = recorded(make, capability)
    assert events[: len(kernel_bytes)] == kernel_bytes
    in_numbers = dtype.itemsize * TOKENS**2
    forward = events[: events.index(dtype.itemsize * OUTPUT, len(kernel_bytes))]
    assert -in_numbers not in forward
    assert (-in_numbers in events) is (mask == torch.bool)


def test_a_mask_with_odd_rows_is_padded_to_a_multiple_of_eight():
    tokens, padded = 119, 120

    def make() -> tuple[Tensors, torch.Tensor | None]:
        return operands(tokens=tokens), torch.zeros(1, 1, tokens, tokens)

    assert recorded(make)[0] == 4 * tokens * padded

    def boolean() -> tuple[Tensors, torch.Tensor | None]:
        return operands(tokens=tokens), torch.zeros(tokens, tokens, dtype=torch.bool)

    # The numbers, then a copy in rows of 120; the first are freed before the kernel runs.
    assert large(recorded(boolean))[:3] == [4 * tokens**2, 4 * tokens * padded, -4 * tokens**2]


def test_a_trained_mask_gets_a_gradient_of_full_size():
    def make() -> tuple[Tensors, torch.Tensor | None]:
        return operands(), torch.zeros(1, HEADS, TOKENS, TOKENS, requires_grad=True)

    full = 4 * BATCH * HEADS * TOKENS**2
    assert {full, full // BATCH} <= set(recorded(make))


def test_the_efficient_kernel_takes_values_of_another_width():
    def make() -> tuple[Tensors, torch.Tensor | None]:
        return operands(value_width=WIDTH // 2), None

    # The output, as wide as a value, and the sums; then the gradients of output and operands.
    output = 4 * OUTPUT // 2
    gradients = [4 * OUTPUT, 4 * OUTPUT, output]
    assert recorded(make, is_causal=True)[:6] == [output, SUMS, output, *gradients]


def test_flash_pads_heads_to_a_multiple_of_eight():
    def make() -> tuple[Tensors, torch.Tensor | None]:
        query, key, value = (torch.zeros(BATCH, HEADS, TOKENS, 30).bfloat16() for _ in "qkv")
        return (query.requires_grad_(), key.requires_grad_(), value.requires_grad_()), None

    padded = 2 * OUTPUT
    assert recorded(make, is_causal=True)[:5] == [padded, padded, padded, padded, SUMS]


def test_a_forward_pass_alone_keeps_no_sums():
    with torch.device("meta"):
        tensors = operands(dtype=torch.bfloat16)
    recorder = Recorder()
    with cuda_kernels(), torch.no_grad(), recorder.phase("forward"):
        attention(*tensors)
    assert [nbytes for nbytes in recorder.allocations.nbytes if nbytes] == [2 * OUTPUT, 8, 8]


@pytest.mark.parametrize(
    ("query", "strides"),
    [
        # The layout of the query: whole heads, or tokens with all heads.
        (lambda: torch.empty(2, 4, 8, 16), (256, 64, 8, 1)),
        (lambda: torch.empty(2, 8, 4, 16).transpose(1, 2), (256, 8, 32, 1)),
        (lambda: torch.empty(1, 4, 8, 16).expand(2, 4, 8, 16), (256, 64, 8, 1)),
    ],
)
def test_cudnn_s_output_has_the_layout_of_the_query(
    query: Callable[[], torch.Tensor],
    strides: tuple[int, ...],
):
    with torch.device("meta"):
        rows, columns = (query().to(torch.bfloat16) for _ in range(2))
        value = torch.empty(2, 4, 8, 8, dtype=torch.bfloat16)
    with cuda_kernels():
        assert attention(rows, columns, value).stride() == strides


def test_a_call_that_torch_refuses_is_refused_in_one_line():
    with torch.device("meta"):
        query, key, value = operands()
        three_heads = operands(heads=3)
        mask = torch.zeros(TOKENS, TOKENS)
    with cuda_kernels():
        with pytest.raises(RuntimeError, match=r"one dtype, got torch.float32, torch.float16"):
            attention(query, key.half(), value)
        with pytest.raises(RuntimeError, match=r"bool, float32 or torch.float32, got torch.int64"):
            attention(query, key, value, mask.long())
        with sdpa_kernel(SDPBackend.MATH), pytest.raises(RuntimeError, match="got both"):
            attention(query, key, value, mask, is_causal=True)
        with pytest.raises(RuntimeError, match="3 heads of keys or values do not"):
            attention(query, *three_heads[1:], enable_gqa=True)
        flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION)
        with flash, pytest.raises(RuntimeError, match=r"allow SDPBackend.MATH"):
            attention(query, key, value)
