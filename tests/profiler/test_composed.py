"""Allocations of operations that meta tensors run as one, by hand and compared with the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from optprof.profiler.tracing.trace import Recorder
from optprof.profiler.tracing.values import with_value


def recorded(run: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> list[int]:
    """Return the bytes of each event of a program with a tensor, negative for a free."""
    recorder = Recorder()
    twin = with_value(tensor.detach()).requires_grad_(tensor.requires_grad)
    with recorder.phase("build"):
        recorder.allocate(twin, "input")
    with recorder.phase("forward"):
        results = run(twin)
    del results
    nbytes = recorder.allocations.nbytes
    return [
        nbytes[event] if event >= 0 else -nbytes[~event] for event in recorder.segments[1].events
    ]


def memory_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def folded(columns: torch.Tensor) -> torch.Tensor:
    return functional.fold(columns, (5, 5), 2)


def test_folded_columns_keep_their_memory():
    # 12 rows of 16 places become 3 channels of 25: 600 bytes of 1536.
    columns = torch.rand(2, 12, 16)
    assert memory_of(folded(columns)) == columns.nbytes == 1536
    assert recorded(folded, columns) == [1536]


@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (3, 5, 5)])
def test_columns_and_their_gradient_are_as_large_as_on_the_cpu(
    shape: tuple[int, ...],
    stride: int | tuple[int, int],
    cpu_events: Callable[[Callable[[], object]], list[int]],
):
    def differentiated(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        columns = functional.unfold(image, 2, stride=stride)
        return columns, *torch.autograd.grad(columns, image, torch.ones_like(columns))

    image = torch.rand(shape, requires_grad=True)
    results: list[object] = []
    real = cpu_events(lambda: results.append(differentiated(image)))
    assert recorded(differentiated, image) == real


@pytest.mark.parametrize("find", [torch.unique, torch.unique_consecutive])
def test_an_output_cut_to_the_distinct_numbers_keeps_its_memory(
    find: Callable[..., tuple[torch.Tensor, ...]],
):
    # Both keep it on CUDA; on the CPU unique_consecutive does too.
    ids = torch.tensor([3, 3, 3, 1, 1, 7, 7, 7])
    assert memory_of(torch.unique_consecutive(ids)) == 8 * 8
    with Recorder().phase("forward"):
        values, inverse, counts = find(with_value(ids), return_inverse=True, return_counts=True)
    assert (values.shape, inverse.shape, counts.shape) == ((3,), (8,), (3,))
    assert [memory_of(tensor) for tensor in (values, inverse, counts)] == [64, 64, 64]
    rows = torch.tensor([[1, 2], [1, 2], [3, 4]])
    with Recorder().phase("forward"):
        assert memory_of(torch.unique(with_value(rows), dim=0)) == 2 * 2 * 8
