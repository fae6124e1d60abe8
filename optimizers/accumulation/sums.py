"""Where the gradients of several micro-batches are summed: in `.grad`, where autograd adds them, or
in buffers of their own.

A window is what is drawn between two steps. Under a GradScaler what lies in `.grad` is in units of
the scaler's scale.
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence

import torch
from torch import Tensor

from ..sharded import local

Params = Sequence[Tensor]


class SumInGradients:
    """The sum in `.grad`: no memory of its own."""

    _drawn = "_drawn_by_accumulation"

    def __init__(self) -> None:
        self._marked = 0

    def tensors(self, params: Params) -> list[Tensor]:
        """The sum, one tensor for each parameter that had a gradient."""
        return fresh(params)

    def mark(self, params: Params) -> None:
        """Remember that these gradients hold draws."""
        grads = _dense(params)
        for grad in grads:
            setattr(grad, self._drawn, True)
        self._marked = len(grads)

    def require_kept(self, params: Params) -> None:
        """RuntimeError where one of the gradients that were marked is gone or replaced, as by
        `model.zero_grad()`.

        Not seen are those that are zeroed in place, and views: DDP moves its own from bucket to
        bucket.
        """
        # A gradient with a history is not added to in place.
        kept = [
            grad
            for grad in _dense(params)
            if hasattr(grad, self._drawn) or grad._is_view() or grad.grad_fn is not None
        ]
        if len(kept) < self._marked:
            raise RuntimeError(
                "the gradients drawn since the last step were replaced or cleared by something"
                " other than this optimizer; leave out model.zero_grad(), or pass buffered=True,"
                " which keeps the sum elsewhere"
            )

    def put_mean(self, params: Params, divisor: float) -> None:
        """Leave the sum over `divisor` in `.grad`."""
        if divisor == 1:
            return
        if dense := [local(grad) for grad in _dense(params)]:
            torch._foreach_div_(dense, divisor)
        for grad in fresh(params):
            if grad.is_sparse:
                grad.div_(divisor)

    def save(self, params: Params) -> list[Tensor | None]:
        """A copy of the sum, parameter by parameter."""
        return [None if param.grad is None else param.grad.detach().clone() for param in params]

    def load(self, params: Params, saved: Sequence[Tensor | None]) -> None:
        """Take up a copy that `save` made."""
        for param, tensor in zip(params, saved, strict=True):
            param.grad = None if tensor is None else tensor.to(param.device, param.dtype, copy=True)
        self.mark(params)

    def clear(self, params: Params) -> None:
        """Forget the window."""
        for param in params:
            param.grad = None


class SumInBuffers:
    """The sum in tensors like the gradients, in float32 or wider: 4 bytes a parameter, there from
    the first draw of a window to its step.

    `.grad` holds one micro-batch at a time, so that one which is not finite can be left out, and
    half precision is rounded once a step.
    """

    def __init__(self) -> None:
        self._sums: dict[Tensor, Tensor] = {}

    def tensors(self, params: Params) -> list[Tensor]:
        """The sum, one tensor for each parameter that had a gradient."""
        return [self._sums[param] for param in params if param in self._sums]

    def add(self, params: Params, scale: float) -> None:
        """Move what the last backward pass left in `.grad` into the sum, divided by `scale`."""
        for param in params:
            if param.grad is None:
                continue
            grad, param.grad = param.grad.detach(), None
            if param in self._sums:
                self._sums[param].add_(grad, alpha=1 / scale)
            else:
                # A copy always: DDP's gradients may be views of buckets that the next backward pass
                # fills anew.
                wide = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True)
                self._sums[param] = wide if scale == 1 else wide.div_(scale)

    def put_mean(self, params: Params, divisor: float) -> None:
        """Leave the sum over `divisor` in `.grad`, in the dtype of the parameter, and forget the
        window.
        """
        for param in params:
            if param in self._sums:
                mean = self._sums.pop(param)
                param.grad = (mean.div_(divisor) if divisor != 1 else mean).to(param.dtype)

    def save(self, params: Params) -> list[Tensor | None]:
        """A copy of the sum, parameter by parameter."""
        return [self._sums[param].clone() if param in self._sums else None for param in params]

    def load(self, params: Params, saved: Sequence[Tensor | None]) -> None:
        """Take up a copy that `save` made."""
        self._sums = {}
        for param, tensor in zip(params, saved, strict=True):
            if tensor is not None:
                self._sums[param] = tensor.to(
                    param.device, torch.promote_types(tensor.dtype, torch.float32), copy=True
                )

    def clear(self, params: Params) -> None:
        """Forget the window."""
        del params
        self._sums = {}


def fresh(params: Params) -> list[Tensor]:
    """The gradients that there are."""
    return [param.grad for param in params if param.grad is not None]


def _dense(params: Params) -> list[Tensor]:
    """Those that autograd adds to in place."""
    return [grad for grad in fresh(params) if not grad.is_sparse]
