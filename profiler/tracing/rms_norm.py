"""CUDA's fused RMS norm on meta tensors, forward and backward, which torch takes apart there.

After rms_norm_symint in aten/src/ATen/native/layer_norm.cpp, which decides for the fused kernel,
and _fused_rms_norm_cuda in native/cuda/layer_norm_kernel.cu.
"""

from collections.abc import Sequence
from typing import Any

import torch

aten = torch.ops.aten


def fused_rms_norm(
    tensor: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalized tensor and the reciprocals of its rows' norms, as one operation."""
    return _RMSNorm.apply(tensor, shape, weight, eps)


def fused_rms_norm_backward(
    grad: torch.Tensor,
    tensor: torch.Tensor,
    shape: Sequence[int],
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of _fused_rms_norm_backward_cuda, contiguous."""
    del grad, shape, rstd
    gradients = zip((tensor, weight), wanted, strict=True)
    return tuple(
        torch.empty_like(operand, memory_format=torch.contiguous_format)
        if is_wanted and operand is not None
        else None
        for operand, is_wanted in gradients
    )


class _RMSNorm(torch.autograd.Function):
    """The node FusedRmsNormBackward0, which torch has for CUDA alone."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        shape: Sequence[int],
        weight: torch.Tensor | None,
        eps: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both outputs; the second is kept for the backward pass and handed to nobody."""
        with torch._C._AutoDispatchBelowAutograd():
            normalized, rstd = aten._fused_rms_norm(tensor, shape, weight, eps)
        ctx.save_for_backward(tensor, rstd, weight)
        ctx.shape = shape
        ctx.mark_non_differentiable(rstd)
        ctx.set_materialize_grads(False)
        return normalized, rstd

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        """Return the gradients of the tensor and the weight."""
        if gradients[0] is None:
            return None, None, None, None
        tensor, rstd, weight = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        with torch._C._AutoDispatchBelowAutograd():
            found = aten._fused_rms_norm_backward(
                gradients[0], tensor, ctx.shape, rstd, weight, wanted
            )
        return found[0], None, found[1], None
