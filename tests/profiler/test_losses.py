"""Memory of losses in a trace, compared with the same losses on the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from optprof.profiler.tracing.kernel_memory import sized_for
from optprof.profiler.tracing.trace import Recorder

LOSSES = (
    functional.mse_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
    functional.l1_loss,
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
    functional.soft_margin_loss,
)


def recorded(loss: Callable[..., torch.Tensor], reduction: str) -> list[int]:
    """Return the bytes of each event of a loss over 50 x 8 numbers and its gradient."""
    recorder = Recorder(workspaces=())
    tensor, target = (torch.empty(50, 8, device="meta") for _ in range(2))
    with recorder.phase("build"):
        for operand in (tensor, target):
            recorder.allocate(operand, "input")
    with recorder.phase("forward"):
        results = differentiate(loss, reduction, tensor, target)
    segments, allocations = sized_for(recorder.segments[1:], recorder.allocations, None)
    del results
    nbytes = allocations.nbytes
    return [nbytes[event] if event >= 0 else -nbytes[~event] for event in segments[0].events]


def differentiate(
    loss: Callable[..., torch.Tensor], reduction: str, tensor: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a loss and its gradient."""
    output = loss(tensor.requires_grad_(), target, reduction=reduction)
    (gradient,) = torch.autograd.grad(output, tensor, torch.empty_like(output))
    return output.detach(), gradient


def large(events: list[int]) -> list[int]:
    """Return the events without scalars, of which the CPU's mean takes more."""
    return [size for size in events if abs(size) > 8]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_a_loss_takes_and_holds_as_much_as_on_the_cpu(
    loss: Callable[..., torch.Tensor],
    reduction: str,
    cpu_events: Callable[[Callable[[], object]], list[int]],
):
    tensor, target = torch.rand(50, 8), torch.rand(50, 8)
    results: list[object] = []
    real = cpu_events(lambda: results.append(differentiate(loss, reduction, tensor, target)))
    assert large(recorded(loss, reduction)) == large(real)


def test_the_mean_of_squares_holds_as_much_as_all_squares():
    loss, gradient = differentiate(
        functional.mse_loss, "mean", torch.rand(50, 8), torch.rand(50, 8)
    )
    assert loss.untyped_storage().nbytes() == gradient.nbytes
    # The output, the squares in turn, the seed, the gradient.
    assert recorded(functional.mse_loss, "mean") == [1600, 1600, -1600, 4, 1600, -4]
