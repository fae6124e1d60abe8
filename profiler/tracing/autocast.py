"""CUDA's autocast for meta tensors, which torch's own autocast ignores.

torch registers what autocast does with an operation under the dispatch key AutocastCUDA, only for
CUDA tensors. Inside `cuda_autocast` the key applies to every tensor, and these kernels replace
torch's. `torch.autocast("cuda")` switches them on and off as usual, in a model's own code and when
a checkpoint recomputes. The lists of operations are those of aten/src/ATen/autocast_mode.h and
"Autocast Op Reference" in PyTorch's documentation.
"""

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint
from torch.utils._pytree import tree_leaves, tree_map

from optprof.scenarios.factories import autocast_can_be_made

from .recurrent_layers import Layers, halved
from .requests import HALF_DTYPES


def _names(text: str) -> tuple[str, ...]:
    """Return the names whose operations this version of torch changes under autocast."""
    return tuple(
        name
        for name in text.split()
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA")
    )


# They run in the lower precision.
LOWER = _names("""
    _convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution cudnn_convolution
    cudnn_convolution_transpose prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear
    addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell
    lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell _scaled_dot_product_flash_attention
    scaled_dot_product_attention
    """)
# They run in float32.
FULL = _names("""
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
    pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm
    frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
    huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss
    triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm
    logsumexp upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d
    _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
    _upsample_bicubic2d_aa
    """)
# They accumulate in float32 if the caller gives no dtype.
FULL_BY_DTYPE = _names("""
    prod prod.dim_int softmax.int log_softmax.int cumprod cumsum sum sum.dim_IntList
    linalg_vector_norm linalg_matrix_norm linalg_matrix_norm.str_ord
    """)
# The same, through an overload with a dtype.
NORMS = {"norm.Scalar": "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype"}
# They run in the widest dtype among their tensors.
PROMOTE = _names("""
    addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
    """)


# Functions that take a device type.
_TAKING_DEVICE_TYPES: tuple[tuple[Any, str], ...] = (
    (torch.autocast, "__init__"),
    (torch, "is_autocast_enabled"),
    (torch, "set_autocast_enabled"),
    (torch, "get_autocast_dtype"),
    (torch, "set_autocast_dtype"),
    (torch.amp, "is_autocast_available"),
    (torch.amp.autocast_mode, "is_autocast_available"),
)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Inside, `torch.autocast("cuda")` works on meta tensors, with or without CUDA."""
    casts = _Casts()
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # torch warns that its kernels are replaced, which is the intention.
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, kernel in casts.kernels():
            library.impl(name, kernel, "AutocastCUDA")
    try:
        with ExitStack() as stack:
            for patch in _patches(casts):
                stack.enter_context(patch)
            stack.enter_context(
                torch._C._IncludeDispatchKeyGuard(torch._C.DispatchKey.AutocastCUDA)
            )
            yield
    finally:
        library._destroy()


def _patches(casts: "_Casts") -> Iterator[AbstractContextManager[Any]]:
    """Yield the patches that let autocast run without CUDA, and take "meta" for "cuda".

    They use plain functions, since mock's own objects would keep the tensors they are called with.
    """
    yield autocast_can_be_made()
    # Models name the device of a tensor, which is "meta" here.
    for owner, name in _TAKING_DEVICE_TYPES:
        yield mock.patch.object(owner, name, new=_to_cuda(getattr(owner, name)))
    # custom_fwd casts the tensors on the device that it names.
    yield mock.patch.object(
        torch.amp.autocast_mode, "_cast", new=_to_meta(torch.amp.autocast_mode._cast)
    )
    yield mock.patch.object(torch, "clear_autocast_cache", new=casts.clear)
    # A checkpoint saves the autocast state of its tensors' device for the recomputation.
    yield mock.patch.object(torch.utils.checkpoint, "_infer_device_type", new=_cuda)
    # transformers switches autocast off around rotary embeddings, but not for meta tensors.
    for module in list(sys.modules.values()):
        if (
            module is not None
            and module.__name__.startswith("transformers.")
            and "maybe_autocast" in vars(module)
        ):
            yield mock.patch.object(module, "maybe_autocast", new=_maybe_autocast)


def _to_cuda(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with "cuda" in place of every "meta" argument."""

    def replaced(*args: Any, **kwargs: Any) -> Any:
        return function(
            *map(_cuda_for_meta, args),
            **{name: _cuda_for_meta(value) for name, value in kwargs.items()},
        )

    return replaced


def _cuda_for_meta(value: Any) -> Any:
    return "cuda" if isinstance(value, str) and value == "meta" else value


def _to_meta(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a value, a device type and a dtype, with "meta" for "cuda"."""

    def replaced(value: Any, device_type: str, dtype: torch.dtype) -> Any:
        return function(value, "meta" if device_type == "cuda" else device_type, dtype)

    return replaced


def _cuda(*tensors: object) -> str:
    del tensors
    return "cuda"


def _maybe_autocast(
    device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **options: Any
) -> AbstractContextManager[Any]:
    """Do as transformers' maybe_autocast, for the simulated device."""
    del device_type
    on = enabled or torch.is_autocast_enabled("cuda")
    return torch.autocast("cuda", dtype=dtype, enabled=enabled, **options) if on else nullcontext()


class _Casts:
    """Autocast's kernels, and the copies of weights that it keeps until it ends."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def clear(self) -> None:
        """Drop the copies; autograd's graph keeps those that the backward pass needs."""
        self._kept.clear()

    def kernels(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Yield the name and the kernel of each operation that autocast changes."""
        for name in LOWER:
            yield name, self._casting(_overload(name), lambda _: torch.get_autocast_dtype("cuda"))
        for name in FULL:
            yield name, self._casting(_overload(name), lambda _: torch.float32)
        for name in PROMOTE:
            yield name, self._casting(_overload(name), _widest)
        for name in FULL_BY_DTYPE:
            yield name, self._full_by_dtype(_overload(name))
        yield "_cudnn_rnn", self._recurrent
        for name, with_dtype in NORMS.items():
            yield name, self._norm(_overload(name), _overload(with_dtype))

    def _recurrent(
        self,
        tensor: torch.Tensor,
        weights: Sequence[torch.Tensor],
        stride: int,
        buffer: torch.Tensor | None,
        *arguments: Any,
    ) -> Any:
        """Run cuDNN's recurrent layers in float16 for any autocast dtype: cudnn/AutocastRNN.cpp."""
        with _off():
            hx, cx, mode, hidden, projection, count, _, _, _, bidirectional, *_ = arguments
            if _is_castable(weights[0]) and weights[0].dtype != torch.float16:
                layers = Layers.of(tensor.size(-1), mode, hidden, projection, count, bidirectional)
                weights, buffer = halved(weights, stride, layers)
            cx = self._cast(cx, torch.float16) if cx is not None and _is_castable(cx) else cx
            hx = self._cast(hx, torch.float16) if _is_castable(hx) else hx
            tensor = self._cast(tensor, torch.float16) if _is_castable(tensor) else tensor
            return torch.ops.aten._cudnn_rnn(
                tensor, weights, stride, buffer, hx, cx, *arguments[2:]
            )

    def _full_by_dtype(self, func: Any) -> Callable[..., Any]:
        """Return a kernel in which `func` returns float32, unless the caller gives a dtype."""

        def kernel(*args: Any, **kwargs: Any) -> Any:
            with _off():
                if (
                    _is_low(args[0])
                    and kwargs.get("dtype") is None
                    and len(args) <= _place_of_dtype(func)
                ):
                    kwargs["dtype"] = torch.float32
                return func(*args, **kwargs)

        return kernel

    def _norm(self, func: Any, with_dtype: Any) -> Callable[..., Any]:
        """Return the same for a `func` whose dtype is an argument of another overload."""

        def kernel(*args: Any, **kwargs: Any) -> Any:
            with _off():
                if not _is_low(args[0]):
                    return func(*args, **kwargs)
                return with_dtype(*args, **kwargs, dtype=torch.float32)

        return kernel

    def _casting(
        self, func: Any, dtype_of: Callable[[list[torch.Tensor]], torch.dtype]
    ) -> Callable[..., Any]:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            with _off():
                dtype = dtype_of(
                    [leaf for leaf in tree_leaves((args, kwargs)) if _is_castable(leaf)]
                )
                kwargs = {
                    name: self._cast_all(value, dtype) for name, value in reversed(kwargs.items())
                }
                # The compiler of torch's Linux builds evaluates the last argument first.
                last_to_first = [self._cast_all(value, dtype) for value in reversed(args)]
                return func(*reversed(last_to_first), **kwargs)

        return kernel

    def _cast_all(self, argument: Any, dtype: torch.dtype) -> Any:
        return tree_map(
            lambda leaf: self._cast(leaf, dtype) if _is_castable(leaf) else leaf, argument
        )

    def _cast(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the tensor in `dtype`; all uses of a float32 weight share one lower copy."""
        if tensor.dtype == dtype:
            return tensor
        keeps = (
            tensor.dtype == torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
        )
        if (
            not keeps
            or dtype != torch.get_autocast_dtype("cuda")
            or not torch.is_autocast_cache_enabled()
        ):
            return tensor.to(dtype)
        weight, copy = self._kept.get(id(tensor), (None, None))
        if weight is not None and copy is not None and weight() is tensor:
            return copy
        copy = tensor.to(dtype)
        self._kept[id(tensor)] = (weakref.ref(tensor), copy)
        return copy


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _off() -> AbstractContextManager[None]:
    """Inside, operations run as without autocast."""
    return torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
    )


def _is_castable(leaf: Any) -> bool:
    return (
        isinstance(leaf, torch.Tensor)
        and leaf.device.type == "meta"
        and leaf.is_floating_point()
        and leaf.dtype != torch.float64
    )


def _is_low(leaf: Any) -> bool:
    return _is_castable(leaf) and leaf.dtype in HALF_DTYPES


def _widest(tensors: list[torch.Tensor]) -> torch.dtype:
    lower = torch.get_autocast_dtype("cuda")
    return lower if all(tensor.dtype == lower for tensor in tensors) else torch.float32


def _place_of_dtype(func: Any) -> int:
    """Return the position of the dtype among the arguments."""
    names = [argument.name for argument in func._schema.arguments]
    return names.index("dtype")
