"""CUDA's kernels in place of those that torch picks for meta tensors.

They concern attention, grouped matrix products, dropout, RMS norm, recurrent layers, lists of
tensors and fused optimizers. RMS norm follows aten/src/ATen/native: layer_norm.cpp and
cuda/layer_norm_kernel.cu.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.utils import _foreach_utils

from .attention import attend, cudnn_attention
from .attention_backend import AttentionCall, Capability
from .grouped_mm import grouped_mm
from .recurrent import substitutes

aten = torch.ops.aten


@contextmanager
def cuda_kernels(capability: Capability = (9, 0)) -> Iterator[set[AttentionCall]]:
    """Inside, meta tensors take CUDA's path on a GPU of this compute capability.

    The path is that of `scaled_dot_product_attention`, `grouped_mm`, `dropout`, `rms_norm`,
    `logsigmoid` and recurrent layers, forward and backward. Dropout keeps a mask of one byte for
    each element. The set collects the calls of attention.
    """
    library = torch.library.Library("aten", "IMPL")
    calls: set[AttentionCall] = set()
    library.impl("scaled_dot_product_attention", partial(attend, capability, calls), "AutogradMeta")
    library.impl("dropout", _dropout, "AutogradMeta")
    library.impl("_fused_rms_norm", _fused_rms_norm, "AutogradMeta")
    # CUDA and the CPU run one operation; meta tensors would run several.
    library.impl("mish_backward", torch.mul, "AutogradMeta")
    for name, run, key in substitutes():
        library.impl(name, run, key)
    # These replace torch's own.
    for name, kernel in (
        ("_scaled_dot_product_cudnn_attention", cudnn_attention),
        ("_grouped_mm", grouped_mm),
        ("_fused_rms_norm_backward", _fused_rms_norm_backward),
        ("log_sigmoid_forward", _log_sigmoid),
    ):
        library.impl(name, kernel, "Meta", allow_override=True)
    try:
        with foreach_on_meta():
            yield calls
    finally:
        library._destroy()


@contextmanager
def foreach_on_meta() -> Iterator[None]:
    """Inside, torch takes lists of meta tensors at once if the device decides, as in clipping."""
    devices = [*_foreach_utils._get_foreach_kernels_supported_devices(), "meta"]
    with mock.patch.object(
        _foreach_utils, "_get_foreach_kernels_supported_devices", return_value=devices
    ):
        yield


def _dropout(tensor: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    if not train or p == 0 or tensor.numel() == 0:
        return tensor
    return torch.native_dropout(tensor, p, train)[0]


def _log_sigmoid(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log_sigmoid_forward_cuda in native/cuda/Activation.cpp: only the CPU fills the buffer."""
    return torch.empty_like(tensor), tensor.new_empty(0)


def _fused_rms_norm(
    tensor: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, eps: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run rms_norm_symint in native/layer_norm.cpp as on CUDA: one operation.

    Return the normalized tensor and the reciprocals of its rows' norms.
    """
    return _RMSNorm.apply(tensor, shape, weight, eps)


def _fused_rms_norm_backward(
    grad: torch.Tensor,
    tensor: torch.Tensor,
    shape: Sequence[int],
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Return contiguous gradients: _fused_rms_norm_backward_cuda."""
    del grad, shape, rstd
    return tuple(
        torch.empty_like(operand, memory_format=torch.contiguous_format)
        if is_needed and operand is not None
        else None
        for operand, is_needed in zip((tensor, weight), output_mask, strict=True)
    )


class _RMSNorm(torch.autograd.Function):
    """The node FusedRmsNormBackward0, which torch has only for CUDA."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        shape: Sequence[int],
        weight: torch.Tensor | None,
        eps: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both outputs; only the backward pass uses the second."""
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
        output_mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        with torch._C._AutoDispatchBelowAutograd():
            of_tensor, of_weight = aten._fused_rms_norm_backward(
                gradients[0], tensor, ctx.shape, rstd, weight, output_mask
            )
        return of_tensor, None, of_weight, None


@contextmanager
def fused_on_meta() -> Iterator[None]:
    """Inside, torch's optimizers with fused=True or capturable=True step on meta tensors too."""
    # torch.optim hides the module behind its package's namespace.
    optimizer: Any = import_module("torch.optim.optimizer")
    library = torch.library.Library("aten", "IMPL")
    for overload in (
        "_fused_sgd_",
        "_fused_sgd_.tensor_lr",
        "_fused_adagrad_",
        "_fused_adagrad_.tensor_lr",
    ):
        library.impl(overload, _writes_in_place, "Meta")
    with ExitStack() as patches:
        for name in ("_get_fused_kernels_supported_devices", "_get_capturable_supported_devices"):
            supported = getattr(optimizer, name)
            for module in _modules_with(name, supported):
                patches.enter_context(
                    mock.patch.object(module, name, partial(_with_meta, supported))
                )
        try:
            yield
        finally:
            library._destroy()


def _modules_with(name: str, function: Any) -> list[ModuleType]:
    """Return the modules that have imported the function, as each of torch's optimizers does."""
    return [
        module
        for module in list(sys.modules.values())
        if getattr(module, "__dict__", {}).get(name) is function
    ]


def _with_meta(supported: Callable[..., list[str]], *args: Any, **kwargs: Any) -> list[str]:
    return [*supported(*args, **kwargs), "meta"]


def _writes_in_place(*args: object, **kwargs: object) -> None:
    """Do nothing: meta tensors have no values. torch itself has this only for Adam's kernels."""
    del args, kwargs
