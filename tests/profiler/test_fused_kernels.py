"""CUDA's fused RMS norm and log sigmoid in a trace, compared with sizes by hand."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from optprof.profiler.tracing.autocast import cuda_autocast
from optprof.profiler.tracing.kernel_memory import sized_for
from optprof.profiler.tracing.kernels import cuda_kernels
from optprof.profiler.tracing.trace import Recorder

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def cuda() -> Iterator[None]:
    """Give meta tensors CUDA's kernels."""
    with cuda_kernels():
        yield


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)


def streams(
    run: Callable[..., torch.Tensor], *tensors: torch.Tensor
) -> tuple[list[int], list[int]]:
    """Return the bytes of each event of `run` and of its backward pass, negative for a free."""
    recorder = Recorder(workspaces=())
    with recorder.phase("build"):
        for tensor in tensors:
            recorder.allocate(tensor, "parameter")
    with recorder.phase("forward"):
        output = run(*tensors)
        seed = torch.empty_like(output)
    with recorder.phase("backward"):
        output.backward(seed)
    segments, allocations = sized_for(recorder.segments[1:], recorder.allocations, None)
    nbytes = allocations.nbytes
    forward, backward = (
        [nbytes[event] if event >= 0 else -nbytes[~event] for event in segment.events]
        for segment in segments
    )
    return forward, backward


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_an_rms_norm_keeps_one_number_for_each_row(dtype: torch.dtype):
    tensor = 50 * 16 * dtype.itemsize
    forward, backward = streams(
        lambda x, w: functional.rms_norm(x, (16,), w),
        meta(50, 16, dtype=dtype),
        meta(16, dtype=dtype),
    )
    # The output, a float32 for each row, the seed.
    assert forward == [tensor, 4 * 50, tensor]
    # The gradients of tensor and weight; the saved numbers of the rows are freed.
    assert sorted(backward) == sorted([tensor, 16 * dtype.itemsize, -4 * 50])


def test_an_rms_norm_without_a_weight_has_one_gradient():
    forward, backward = streams(lambda x: functional.rms_norm(x, (16,)), meta(50, 16))
    assert forward == [3200, 200, 3200]
    assert sorted(backward) == [-200, 3200]


def test_a_weight_of_another_dtype_is_normalized_in_several_operations():
    with pytest.warns(UserWarning, match="Mismatch dtype"):
        forward, _ = streams(
            lambda x, w: functional.rms_norm(x, (16,), w), meta(50, 16, dtype=HALF), meta(16)
        )
    # The tensor in float32, its squares, their product with the norms.
    assert forward.count(3200) >= 3


def test_autocast_normalizes_in_float32():
    with cuda_autocast(), torch.autocast("cuda", dtype=HALF):
        forward, _ = streams(
            lambda x, w: functional.rms_norm(x, (16,), w), meta(50, 16, dtype=HALF), meta(16)
        )
    # A copy of the tensor in float32, the output, the rows, the seed.
    assert forward == [3200, 3200, 200, 3200]


def test_a_checkpoint_keeps_no_numbers_of_the_rows():
    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        # Two norms, so that one saves its input inside the checkpoint.
        return checkpoint(
            lambda x: functional.rms_norm(functional.rms_norm(x, (16,), w), (16,), w),
            x,
            use_reentrant=False,
        )

    forward, backward = streams(run, meta(50, 16), meta(16))
    assert sum(forward) == 2 * 3200
    assert backward[:3] == [3200, 200, 3200]


def test_an_rms_norm_outside_a_graph_keeps_only_its_output():
    recorder = Recorder(workspaces=())
    with recorder.phase("forward"), torch.no_grad():
        output = functional.rms_norm(torch.empty(50, 16, device="meta"), (16,))
    del output
    nbytes = recorder.allocations.nbytes
    assert [
        nbytes[event] if event >= 0 else -nbytes[~event] for event in recorder.segments[0].events
    ] == [3200, 3200, 200, -200, -3200]


def test_a_log_sigmoid_keeps_no_buffer():
    forward, backward = streams(functional.logsigmoid, meta(50, 16))
    assert forward == [3200, 3200]
    assert backward == [3200]
