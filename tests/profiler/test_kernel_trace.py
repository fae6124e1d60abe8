"""The kernels of a step: bytes for each parameter, launches and waits, as counted by hand."""

from collections import Counter

import pytest
import torch

from optprof import optimizers
from optprof.profiler.tracing.kernel_trace import KernelRecorder, StepTrace, launches, trace_step

SHAPES = [(512, 256), (256,), (300, 70)]
COUNT = sum(torch.Size(shape).numel() for shape in SHAPES)

# Bytes for each float32 parameter. Each r or w reads or writes 4 bytes; a step in place does both:
# momentum m = 0.9 m (r w), m += g (r r w), p -= lr m (r r w)
SGD = 4 * (2 + 3 + 3)
# p *= 1 - lr wd (r w), m lerp g (r r w), v *= b (r w), v += g g (r r w), d = sqrt v (r w), d /= (r
# w), d += eps (r w), p += m / d (r r r w)
ADAMW = 4 * (2 + 3 + 2 + 3 + 2 + 2 + 2 + 4)
# One pass: p, g, m and v are read; p, m and v written.
ADAMW_FUSED = ADAMW_NEEDED = 4 * (4 + 3)
SGD_NEEDED = 4 * (3 + 2)


def traced(
    spec: str, how: optimizers.Implementation, shapes: list[tuple[int, ...]] = SHAPES
) -> StepTrace:
    make = lambda parameters: optimizers.create(spec, parameters, implementation=how)  # noqa: E731
    return trace_step([(shape, torch.float32) for shape in shapes], make)


def moved(trace: StepTrace) -> int:
    return sum(kernel.bytes for kernel in trace.kernels)


@pytest.mark.parametrize("how", ["loop", "foreach"])
@pytest.mark.parametrize(
    ("spec", "a_parameter", "needed"), [("sgd", SGD, SGD_NEEDED), ("adamw", ADAMW, ADAMW_NEEDED)]
)
def test_a_step_moves_the_bytes_that_its_operations_read_and_write(
    spec: str, how: optimizers.Implementation, a_parameter: int, needed: int
):
    trace = traced(spec, how)
    assert moved(trace) == a_parameter * COUNT
    assert trace.needed_bytes == needed * COUNT
    assert not any(kernel.waits for kernel in trace.kernels)


def test_a_fused_step_moves_each_tensor_once():
    trace = traced("adamw", "fused")
    steps = (
        2 * 4 * len(SHAPES)
    )  # the step counts live on the device, and one more kernel increments them
    fused = next(kernel for kernel in trace.kernels if kernel.name == "_fused_adamw_")
    assert fused.bytes == ADAMW_FUSED * COUNT + steps // 2
    assert moved(trace) == fused.bytes + steps
    assert [kernel.launches for kernel in trace.kernels] == [1, 1]


def test_fused_momentum_reads_three_tensors_and_writes_two():
    trace = traced("sgd", "fused")
    assert [(kernel.name, kernel.bytes) for kernel in trace.kernels] == [
        ("_fused_sgd_", SGD_NEEDED * COUNT)
    ]


def test_the_loop_launches_for_each_tensor_and_foreach_for_all():
    assert sum(kernel.launches for kernel in traced("adamw", "loop").kernels) == 8 * len(SHAPES)
    assert sum(kernel.launches for kernel in traced("adamw", "foreach").kernels) == 8


def test_bf16_moves_half_the_bytes():
    trace = trace_step(
        [(shape, torch.bfloat16) for shape in SHAPES],
        lambda params: torch.optim.SGD(params, momentum=0.9, foreach=True),
    )
    assert moved(trace) == SGD // 2 * COUNT


def recorded(function: object, *tensors: torch.Tensor) -> list[tuple[str, int]]:
    recorder = KernelRecorder()
    recorder.begin(tensors)
    with recorder:
        function(*tensors)  # pyright: ignore[reportCallIssue]
    return [(kernel.name, kernel.bytes) for kernel in recorder.trace().kernels]


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (lambda a: a.zero_(), "zero_", 400),
        (lambda a: a.add_(1), "add_", 800),
        (lambda a: a.sum(), "sum", 404),
        (lambda a: torch.zeros_like(a), "zeros_like", 400),
        (lambda a: a.clone(), "clone", 800),
        (lambda a: a.bfloat16(), "_to_copy", 600),
        (lambda a: a[:5].mul_(2), "mul_", 400),
        (lambda a: a.addcmul_(a, a), "addcmul_", 800),
        (lambda a: a.div_(a[:1]), "div_", 40 + 800),
        (
            lambda a: torch.add(a, a[0, 0].expand(10, 10), out=torch.empty_like(a)),
            "add",
            400 + 4 + 400,
        ),
    ],
)
def test_an_operation_reads_its_operands_and_writes_its_result(
    function: object, name: str, expected: int
):
    assert recorded(function, meta(10, 10)) == [(name, expected)]


def test_a_view_moves_nothing():
    assert (
        recorded(
            lambda a: (a.t(), a.view(-1)[3:], a.detach(), torch.empty_like(a), a.expand(3, 10, 10)),
            meta(10, 10),
        )
        == []
    )


def test_a_matrix_product_counts_its_arithmetic():
    recorder = KernelRecorder()
    recorder.begin([])
    with recorder:
        torch.mm(meta(8, 16), meta(16, 32))
    assert [kernel.flops for kernel in recorder.trace().kernels] == [2 * 8 * 16 * 32]


def test_a_read_back_makes_the_host_wait():
    trace = traced("adafactor", "loop", [(6, 4), (3,)])
    assert (
        Counter(kernel.waits for kernel in trace.kernels)[True] == 4
    )  # two norms of each tensor, for max()
    host = trace_step(
        [((4,), torch.float32)], lambda params: torch.optim.Adam(params, foreach=False)
    )
    assert not any(kernel.waits for kernel in host.kernels)  # its step count lives on the host


@pytest.mark.parametrize(
    ("sizes", "lists", "scalars", "expected"),
    [
        ([], 1, False, 0),
        ([0, 0], 1, False, 0),
        ([1] * 770, 1, False, 1),
        ([1] * 771, 1, False, 2),
        ([1] * 673, 1, True, 2),
        ([1] * 211, 5, False, 2),
        ([65_536 * 2_240], 3, False, 1),
        ([65_536 * 2_240 + 1], 3, False, 2),
        ([65_536 * 2_240 + 1, 1], 3, False, 2),
        ([65_536 * 2_240 * 3], 1, False, 3),
        ([65_536 * 2_240 + 1, *[1] * 769], 1, False, 2),
        ([65_536 * 2_240 + 1, *[1] * 770], 1, False, 3),
    ],
)
def test_a_launch_has_limits_of_tensors_and_chunks(
    sizes: list[int], lists: int, scalars: bool, expected: int
):
    assert (
        launches(sizes, lists=lists, scalars=scalars)
        == expected
        == chunk_by_chunk(sizes, lists, scalars)
    )


def chunk_by_chunk(sizes: list[int], lists: int, scalars: bool) -> int:
    """Return the launches of ATen's loop, one chunk at a time."""
    most = ((672, 448, 336, 252, 210) if scalars else (770, 448, 336, 252, 210))[lists - 1]
    count = tensors = blocks = 0
    for size in filter(None, sizes):
        tensors += 1
        chunks = -(-size // 65_536)
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if (tensors == most and last) or blocks == 2_240:
                count, blocks, tensors = count + 1, 0, 0 if last else 1
    return count + (blocks > 0)
