"""Sums of several micro-batches' gradients: in `.grad`, where autograd adds them, or in buffers.

A window is what is drawn between two steps. Under a GradScaler the gradients in `.grad` are
multiplied by its scale.
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence

import torch
from torch import Tensor

from ..sharded import local

Params = Sequence[Tensor]


class GradientSum:
    """The sum of a window: `weight` draws, multiplied by `scale`."""

    def __init__(self) -> None:
        self.weight, self.scale = 0.0, 1.0

    @property
    def divisor(self) -> float:
        """Return the number by which the sum is divided for the mean."""
        return self.weight * self.scale

    def tensors(self, params: Params) -> list[Tensor]:
        """Return the sum, a tensor for each parameter that had a gradient."""
        raise NotImplementedError

    def require_intact(self, params: Params) -> None:
        """Raise RuntimeError if something else has replaced or cleared the sum."""

    def add(self, params: Params, scale: float) -> None:
        """Add the draw that the last backward pass left in `.grad`, multiplied by `scale`."""
        raise NotImplementedError

    def put_mean(self, params: Params, divisor: float) -> None:
        """Leave the sum over `divisor` in `.grad`."""
        raise NotImplementedError

    def save(self, params: Params) -> list[Tensor | None]:
        """Return a copy of the sum, parameter by parameter."""
        raise NotImplementedError

    def load(
        self, params: Params, saved: Sequence[Tensor | None], weight: float, scale: float
    ) -> None:
        """Restore a copy that `save` of this or the other kind of sum made."""
        raise NotImplementedError

    def clear(self, params: Params) -> None:
        """Forget the window."""
        del params
        self.weight, self.scale = 0.0, 1.0


class SumInGradients(GradientSum):
    """The sum in `.grad`, which needs no memory."""

    _mark = "_drawn_by_accumulation"

    def __init__(self) -> None:
        super().__init__()
        self._marked = 0

    def tensors(self, params: Params) -> list[Tensor]:
        """Return the gradients."""
        return gradients(params)

    def require_intact(self, params: Params) -> None:
        """Raise RuntimeError if a marked gradient was replaced or removed, as by zero_grad().

        A gradient that was zeroed in place goes unnoticed, and so does a view: DDP moves its own
        views from bucket to bucket.
        """
        # Autograd does not add in place to a gradient with a history.
        intact = [
            grad
            for grad in _dense(params)
            if hasattr(grad, self._mark) or grad._is_view() or grad.grad_fn is not None
        ]
        if self.weight and len(intact) < self._marked:
            raise RuntimeError(
                "the gradients drawn since the last step were replaced or cleared by something"
                " other than this optimizer; leave out model.zero_grad(), or pass buffered=True,"
                " which keeps the sum elsewhere"
            )

    def add(self, params: Params, scale: float) -> None:
        """Mark the gradients, to which autograd has added the draw."""
        self._mark_gradients(params)
        # If the scaler has changed its scale, earlier draws count in proportion.
        self.weight, self.scale = self.weight * (self.scale / scale) + 1, scale

    def _mark_gradients(self, params: Params) -> None:
        grads = _dense(params)
        for grad in grads:
            setattr(grad, self._mark, True)
        self._marked = len(grads)

    def put_mean(self, params: Params, divisor: float) -> None:
        """Divide the gradients."""
        if divisor == 1:
            return
        if dense := [local(grad) for grad in _dense(params)]:
            torch._foreach_div_(dense, divisor)
        for grad in gradients(params):
            if grad.is_sparse:
                grad.div_(divisor)

    def save(self, params: Params) -> list[Tensor | None]:
        """Return a copy of the gradients."""
        return [None if param.grad is None else param.grad.detach().clone() for param in params]

    def load(
        self, params: Params, saved: Sequence[Tensor | None], weight: float, scale: float
    ) -> None:
        """Restore a copy in `.grad`."""
        self.weight, self.scale = weight, scale
        for param, tensor in zip(params, saved, strict=True):
            param.grad = None if tensor is None else tensor.to(param.device, param.dtype, copy=True)
        self._mark_gradients(params)

    def clear(self, params: Params) -> None:
        """Remove the gradients."""
        super().clear(params)
        for param in params:
            param.grad = None


class SumInBuffers(GradientSum):
    """The sum in float32 or wider buffers, 4 bytes a parameter from a window's first draw on.

    `.grad` has one micro-batch at a time, so one that is not finite can be left out, and half
    precision is rounded once a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[Tensor, Tensor] = {}

    def tensors(self, params: Params) -> list[Tensor]:
        """Return the buffers."""
        return [self._sums[param] for param in params if param in self._sums]

    def add(self, params: Params, scale: float) -> None:
        """Move the gradients into the buffers, divided by `scale`."""
        self.weight += 1
        for param in params:
            if param.grad is None:
                continue
            grad, param.grad = param.grad.detach(), None
            if param in self._sums:
                self._sums[param].add_(grad, alpha=1 / scale)
            else:
                # Always a copy: DDP's gradients may be views of buckets that it fills again.
                wide = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True)
                self._sums[param] = wide if scale == 1 else wide.div_(scale)

    def put_mean(self, params: Params, divisor: float) -> None:
        """Move the buffers over `divisor` into `.grad`, in the parameter's dtype."""
        for param in params:
            if param in self._sums:
                mean = self._sums.pop(param)
                param.grad = (mean.div_(divisor) if divisor != 1 else mean).to(param.dtype)

    def save(self, params: Params) -> list[Tensor | None]:
        """Return a copy of the buffers."""
        return [self._sums[param].clone() if param in self._sums else None for param in params]

    def load(
        self, params: Params, saved: Sequence[Tensor | None], weight: float, scale: float
    ) -> None:
        """Restore a copy in buffers, divided by its scale."""
        self.clear(params)
        self.weight = weight
        for param, tensor in zip(params, saved, strict=True):
            if tensor is not None:
                wide = torch.promote_types(tensor.dtype, torch.float32)
                self._sums[param] = tensor.to(param.device, wide, copy=True)
                if scale != 1:
                    self._sums[param].div_(scale)

    def clear(self, params: Params) -> None:
        """Remove the buffers."""
        super().clear(params)
        self._sums = {}


def gradients(params: Params) -> list[Tensor]:
    """Return the gradients of the parameters that have one."""
    return [param.grad for param in params if param.grad is not None]


def _dense(params: Params) -> list[Tensor]:
    """Return the gradients to which autograd adds in place."""
    return [grad for grad in gradients(params) if not grad.is_sparse]
