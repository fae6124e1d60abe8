"""The kernels that CUDA would pick where a meta tensor would get others: attention, dropout, lists of tensors at once, fused optimizers."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch.utils import _foreach_utils

_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Inside, meta tensors take CUDA's path through `scaled_dot_product_attention` and `dropout`, forward and backward.

    Attention: flash for half precision without a mask, memory-efficient otherwise. Dropout keeps a mask of one byte an element.
    """
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", _attention, "AutogradMeta")
    library.impl("dropout", _dropout, "AutogradMeta")
    try:
        with foreach_on_meta():
            yield
    finally:
        library._destroy()


@contextmanager
def foreach_on_meta() -> Iterator[None]:
    """Inside, torch takes whole lists of meta tensors at once where it leaves the choice to the device, as in clipping."""
    devices = [*_foreach_utils._get_foreach_kernels_supported_devices(), "meta"]
    with mock.patch.object(_foreach_utils, "_get_foreach_kernels_supported_devices", return_value=devices):
        yield


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if query.dtype in _HALF and attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if enable_gqa:
        # The memory-efficient kernel wants as many key and value heads as query heads.
        key, value = (tensor.repeat_interleave(query.size(-3) // tensor.size(-3), -3) for tensor in (key, value))
    for_backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, for_backward, dropout_p, is_causal, scale=scale
    )[0]


def _dropout(tensor: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    if not train or p == 0 or tensor.numel() == 0:
        return tensor
    return torch.native_dropout(tensor, p, train)[0]


@contextmanager
def fused_on_meta() -> Iterator[None]:
    """Inside, torch's optimizers with fused=True step on meta tensors too, which they refuse outside; the kernels are CUDA's."""
    # torch.optim hides the module behind its package's namespace.
    optimizer: Any = import_module("torch.optim.optimizer")
    supported = optimizer._get_fused_kernels_supported_devices
    library = torch.library.Library("aten", "IMPL")
    for overload in ("_fused_sgd_", "_fused_sgd_.tensor_lr", "_fused_adagrad_", "_fused_adagrad_.tensor_lr"):
        library.impl(overload, _writes_in_place, "Meta")
    optimizer._get_fused_kernels_supported_devices = lambda: [*supported(), "meta"]
    try:
        yield
    finally:
        optimizer._get_fused_kernels_supported_devices = supported
        library._destroy()


def _writes_in_place(*args: object, **kwargs: object) -> None:
    """Meta tensors have nothing to write; torch brings this for Adam's kernels alone."""
    del args, kwargs
