"""The kernels that CUDA picks where a meta tensor would get others.

Attention, grouped matrix products, dropout, lists of tensors at once, fused optimizers.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.utils import _foreach_utils

from .attention import attend, cudnn_attention
from .attention_backend import Call, Capability, Settings
from .grouped_mm import grouped_mm
from .recurrent import substitutes
from .rms_norm import fused_rms_norm, fused_rms_norm_backward


@contextmanager
def cuda_kernels(capability: Capability = (9, 0)) -> Iterator[set[tuple[Call, Settings]]]:
    """Inside, meta tensors take CUDA's path on a GPU of this compute capability.

    That is the path through `scaled_dot_product_attention`, `grouped_mm`, `dropout`, `rms_norm`,
    `logsigmoid` and recurrent layers, forward and backward. Dropout keeps a mask of one byte an
    element. The set fills with the calls of attention.
    """
    library = torch.library.Library("aten", "IMPL")
    seen: set[tuple[Call, Settings]] = set()
    library.impl("scaled_dot_product_attention", partial(attend, capability, seen), "AutogradMeta")
    library.impl("dropout", _dropout, "AutogradMeta")
    library.impl("_fused_rms_norm", fused_rms_norm, "AutogradMeta")
    # One operation on CUDA and the CPU, and several on meta tensors, which may have no kernel for
    # it.
    library.impl("mish_backward", torch.mul, "AutogradMeta")
    for name, run, key in substitutes():
        library.impl(name, run, key)
    # In the place of torch's own.
    for name, kernel in (
        ("_scaled_dot_product_cudnn_attention", cudnn_attention),
        ("_grouped_mm", grouped_mm),
        ("_fused_rms_norm_backward", fused_rms_norm_backward),
        ("log_sigmoid_forward", _log_sigmoid),
    ):
        library.impl(name, kernel, "Meta", allow_override=True)
    try:
        with foreach_on_meta():
            yield seen
    finally:
        library._destroy()


@contextmanager
def foreach_on_meta() -> Iterator[None]:
    """Inside, torch takes whole lists of meta tensors at once where it leaves the choice to the
    device, as in clipping.
    """
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
    """log_sigmoid_forward_cuda in native/cuda/Activation.cpp: the CPU alone fills the buffer."""
    return torch.empty_like(tensor), tensor.new_empty(0)


@contextmanager
def fused_on_meta() -> Iterator[None]:
    """Inside, torch's optimizers with fused=True step on meta tensors too, which they refuse
    outside; the kernels are CUDA's.

    So do those with capturable=True.
    """
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
            for module in _holding(name, supported):
                patches.enter_context(
                    mock.patch.object(module, name, partial(_with_meta, supported))
                )
        try:
            yield
        finally:
            library._destroy()


def _holding(name: str, function: Any) -> list[ModuleType]:
    """Modules that have the function under this name; each of torch's optimizers imports it for
    itself.
    """
    return [
        module
        for module in list(sys.modules.values())
        if getattr(module, "__dict__", {}).get(name) is function
    ]


def _with_meta(supported: Callable[..., list[str]], *args: Any, **kwargs: Any) -> list[str]:
    return [*supported(*args, **kwargs), "meta"]


def _writes_in_place(*args: object, **kwargs: object) -> None:
    """Meta tensors have nothing to write; torch brings this for Adam's kernels alone."""
    del args, kwargs
