"""ctc_loss as CUDA runs it if the lengths are known: LossCTC.cu in ATen/native/cuda.

These are ATen's own kernels. cuDNN's, which needs 32-bit targets in one row, is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .values import UnknownError, value_of

aten = torch.ops.aten
# Above this size the gradient sums over labels before its kernel: ctc_loss_backward_gpu_template.
_LARGE = 450


def _longest(lengths: torch.Tensor | Sequence[int]) -> int:
    if not isinstance(lengths, torch.Tensor):
        return max(lengths, default=0)
    value = value_of(lengths)
    if value is None:
        raise UnknownError
    return int(value.max()) if value.numel() else 0


def _lengths(log_probs: torch.Tensor) -> list[torch.Tensor]:
    """Return device tensors for the lengths of targets and inputs and the targets' offsets."""
    return [
        torch.empty(log_probs.size(1), dtype=torch.int64, device=log_probs.device) for _ in range(3)
    ]


def _forward(
    log_probs: torch.Tensor, targets: Any, input_lengths: Any, target_lengths: Any, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each sample's loss and forward variables, over targets with blanks in between."""
    del targets, input_lengths
    _lengths_on_device = _lengths(log_probs)
    steps, batch, _labels = log_probs.shape
    log_alpha = log_probs.new_empty(batch, steps, 2 * _longest(target_lengths) + 1)
    return log_probs.new_empty(batch), log_alpha


def _backward(
    grad: torch.Tensor,
    log_probs: torch.Tensor,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    losses: torch.Tensor,
    log_alpha: torch.Tensor,
    blank: int,
    zero_infinity: bool = False,
) -> torch.Tensor:
    """Return the gradient of the probabilities."""
    del targets, input_lengths, target_lengths
    _lengths_on_device = _lengths(log_probs)
    log_beta = torch.empty_like(log_alpha)
    result = torch.empty_like(log_probs, memory_format=torch.contiguous_format)
    steps, batch, labels = log_probs.shape
    if 2 * steps + 24 * batch // 10 + 2 * labels // 10 > _LARGE:
        blanks = (
            (log_alpha[..., ::2] + log_beta[..., ::2]).logsumexp(2, keepdim=True).permute(1, 0, 2)
        )
        blanks.add_(losses.view(1, batch, 1)).sub_(log_probs.narrow(2, blank, 1)).exp_()
        result.narrow(2, blank, 1).sub_(blanks)
        del blanks
        result.mul_(grad.view(1, batch, 1))
        if zero_infinity:
            infinite = losses.view(1, batch, 1) == torch.inf
            result = torch.where(
                infinite, torch.zeros((), dtype=result.dtype, device=result.device), result
            )
    return result


CTC: Mapping[Any, Callable[..., Any]] = {
    aten._ctc_loss.default: _forward,
    aten._ctc_loss.Tensor: _forward,
    aten._ctc_loss_backward.default: _backward,
    aten._ctc_loss_backward.Tensor: _backward,
}
