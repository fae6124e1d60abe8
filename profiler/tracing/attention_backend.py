"""The kernel that CUDA picks for `scaled_dot_product_attention`, by the rules of torch 2.13.

The rules are in aten/src/ATen/native/transformers: cuda/sdp_utils.cpp and sdp_utils_cpp.h. Each
one here names its function there. Nested tensors, float8 and FlashAttention 3 are left out.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from .requests import AMD, HALF_DTYPES

Backend = Literal["cudnn", "flash", "efficient", "math"]
Capability = tuple[int, int]


class AttentionInput(NamedTuple):
    """The properties of a tensor that the choice depends on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "AttentionInput":
        """Return the properties of a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad)


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """All that the choice depends on: a call, autograd's mode, torch's settings and the GPU.

    `enabled` are the backends that the user allows, and `order` is the user's own order or None.
    """

    query: AttentionInput
    key: AttentionInput
    value: AttentionInput
    mask: AttentionInput | None
    dropout: float = 0.0
    is_causal: bool = False
    enable_gqa: bool = False
    grad_enabled: bool
    enabled: frozenset[Backend]
    order: tuple[Backend, ...] | None
    deterministic: bool
    capability: Capability

    @classmethod
    def now(
        cls,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        capability: Capability,
        **options: Any,
    ) -> "AttentionCall":
        """Return a call under torch's current settings, for a GPU of this compute capability."""
        order = tuple(_get_order())
        return cls(
            query=AttentionInput.of(query),
            key=AttentionInput.of(key),
            value=AttentionInput.of(value),
            mask=None if mask is None else AttentionInput.of(mask),
            grad_enabled=torch.is_grad_enabled(),
            enabled=frozenset(name for name, is_on in _SWITCHES.items() if is_on()),
            order=None if order == _USUAL_ORDER else tuple(_NAMES[n] for n in order if n in _NAMES),
            # "warn_only" is 1.
            deterministic=torch.get_deterministic_debug_mode() == 2,
            capability=capability,
            **options,
        )

    @property
    def trains(self) -> bool:
        """True if a backward pass will follow: input_requires_grad."""
        return self.grad_enabled and any(tensor.requires_grad for tensor in self.inputs)

    @property
    def inputs(self) -> tuple[AttentionInput, AttentionInput, AttentionInput]:
        """The query, the key and the value."""
        return self.query, self.key, self.value


def choose(call: AttentionCall) -> Backend | Literal["error"]:
    """Return the first backend in order that takes the call, or "error": select_sdp_backend."""
    for backend in call.order or _preference(call.capability):
        if backend in call.enabled and _TAKES[backend](call):
            return backend
    return "error"


def depends_on(calls: Iterable[AttentionCall], capability: Capability) -> bool:
    """Return whether a GPU of this compute capability chooses another backend for any call."""
    return any(choose(call) != choose(replace(call, capability=capability)) for call in calls)


def _preference(capability: Capability) -> tuple[Backend, ...]:
    """check_prefer_cudnn_attention: cuDNN above 9.15.0 comes first on Hopper, B200 and B300.

    torch has this rule since 2.10; its wheels bring a recent enough cuDNN since 2.11 (9.19). On
    other GPUs cuDNN comes last, after math: Context::sDPPriorityOrder.
    """
    if capability[0] in (9, 10) and capability[1] in (0, 3):
        return "cudnn", "flash", "efficient", "math"
    return "flash", "efficient", "math", "cudnn"


def _can_use_cudnn(call: AttentionCall) -> bool:
    """can_use_cudnn_attention, with a cuDNN above 9.15.0."""
    return (
        call.capability != AMD
        and _is_four_dimensional(call)
        and not call.deterministic
        and _shares_dtype(call, _low_precision(call.capability))
        and _fits_mask(call)
        and (8, 0) <= call.capability <= (12, 1)
        # check_cudnn_dropout: a probability is a multiple of 1/16. torch 2.11 has no such rule.
        and (16 * call.dropout).is_integer()
        and _has_tokens(call)
        and _has_dense_rows(call, ignore_width_of_one=True)
        and _fits_heads(call, supports_gqa=True, same_key_and_value=False)
        and _fits_cudnn(call)
    )


def _can_use_flash(call: AttentionCall) -> bool:
    """can_use_flash_attention."""
    width = call.query.shape[-1]
    return (
        _is_four_dimensional(call)
        and call.mask is None
        # check_head_dim_size_flash, aotriton_max_hdim
        and all(tensor.shape[-1] == width for tensor in call.inputs)
        and width <= (512 if call.capability == AMD else 256)
        # check_flash_attention_hardware_support
        and (8, 0) <= call.capability <= (12, 1)
        and _has_flash_backward(call)
        # check_flash_causal_non_square_seqlens
        and not (call.is_causal and call.query.shape[-2] != call.key.shape[-2])
        and _shares_dtype(call, _low_precision(call.capability))
        and _fits_heads(call, supports_gqa=True, same_key_and_value=True)
        and _has_tokens(call)
        and _has_dense_rows(call, ignore_width_of_one=True)
    )


def _can_use_efficient(call: AttentionCall) -> bool:
    """can_use_mem_efficient_attention."""
    old = call.capability[0] < 8
    return (
        # check_mem_efficient_hardware_support
        (5, 0) <= call.capability <= (12, 1)
        and _is_four_dimensional(call)
        and _fits_efficient(call)
        and _has_tokens(call)
        and _has_dense_rows(call, ignore_width_of_one=False)
        # Grouped heads are refused even with enable_gqa.
        and _fits_heads(call, supports_gqa=False, same_key_and_value=True)
        and _shares_dtype(call, (torch.float16, torch.float32, *(() if old else (torch.bfloat16,))))
    )


def _can_use_math(call: AttentionCall) -> bool:
    """Return True: the math kernel takes every call."""
    del call
    return True


_TAKES: Mapping[Backend, Callable[[AttentionCall], bool]] = {
    "cudnn": _can_use_cudnn,
    "flash": _can_use_flash,
    "efficient": _can_use_efficient,
    "math": _can_use_math,
}


def _is_four_dimensional(call: AttentionCall) -> bool:
    """check_tensor_shapes."""
    return all(len(tensor.shape) == 4 for tensor in call.inputs)


def _shares_dtype(call: AttentionCall, allowed: tuple[torch.dtype, ...]) -> bool:
    """check_tensor_dtype."""
    return {tensor.dtype for tensor in call.inputs} <= {call.query.dtype} & set(allowed)


def _low_precision(capability: Capability) -> tuple[torch.dtype, ...]:
    """check_dtypes_low_precision."""
    return HALF_DTYPES if capability[0] >= 8 else (torch.float16,)


def _has_tokens(call: AttentionCall) -> bool:
    """check_nonzero_sequence_lengths_dense."""
    return call.query.shape[-2] != 0 and call.key.shape[-2] != 0


def _has_dense_rows(call: AttentionCall, *, ignore_width_of_one: bool) -> bool:
    """check_last_dim_stride_equals_1_dense."""
    dense = all(tensor.stride[-1] == 1 for tensor in call.inputs)
    dense = dense or (ignore_width_of_one and call.query.shape[-1] == 1)
    return dense and (call.mask is None or call.mask.stride[-1] == 1)


def _fits_heads(call: AttentionCall, *, supports_gqa: bool, same_key_and_value: bool) -> bool:
    """check_batch_size_and_num_heads_dense, check_grouped_query_attention."""
    if len({tensor.shape[0] for tensor in call.inputs}) > 1:
        return False
    queries, keys, values = (tensor.shape[-3] for tensor in call.inputs)
    if not (call.enable_gqa and supports_gqa):
        return queries == keys == values
    if same_key_and_value:
        return keys == values and queries % keys == 0
    return queries % keys == 0 and queries % values == 0


def _fits_mask(call: AttentionCall) -> bool:
    """check_attn_mask_shape."""
    if call.mask is None:
        return True
    batch, heads, queries, _ = call.query.shape
    shape = call.mask.shape
    full = (batch, heads, queries, call.key.shape[2])
    if call.mask.requires_grad or len(shape) not in (2, 4):
        return False
    return all(size in (1, whole) for size, whole in zip(shape, full[-len(shape) :], strict=True))


def _fits_cudnn(call: AttentionCall) -> bool:
    """check_cudnn_tensor_shapes."""
    width, value_width = call.query.shape[-1], call.value.shape[-1]
    limit = 256 if call.capability == (9, 0) else 128
    if call.capability[0] == 10 and (width, value_width) == (192, 128):
        limit = 192
    return (
        max(width, value_width) <= limit
        and width % 8 == 0
        and value_width % 8 == 0
        and call.key.shape[2] != 1
        and not (call.dropout and call.query.shape[2] == 1)
    )


def _has_flash_backward(call: AttentionCall) -> bool:
    """check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120."""
    if not call.trains or not (
        (8, 6) <= call.capability <= (8, 9) or call.capability in ((12, 0), (12, 1))
    ):
        return True
    width = call.query.shape[-1]
    return width <= 192 or (width > 224 and not call.dropout)


def _fits_efficient(call: AttentionCall) -> bool:
    """check_head_dim_size_mem_efficient, minimum_gemm_alignment."""
    width, key_width, value_width = (tensor.shape[-1] for tensor in call.inputs)
    if call.capability == AMD and (value_width != width or width > 512):
        return False
    half = call.query.dtype in HALF_DTYPES
    # Tensor cores take rows of 16 bytes; those of Volta and Turing only in half precision.
    alignment = (
        (8 if half else 4) if call.capability[0] >= 8 or (half and call.capability[0] == 7) else 1
    )
    if width != key_width or 0 in (width, value_width):
        return False
    return width % alignment == 0 and value_width % alignment == 0


# at::SDPBackend; 4 is for other devices.
_NAMES: Mapping[int, Backend] = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
_USUAL_ORDER = (1, 2, 0, 3, 4)
# Missing from torch's stubs.
_get_order: Callable[[], list[int]] = getattr(torch._C, "_get_sdp_priority_order")  # noqa: B009
_SWITCHES: Mapping[Backend, Callable[[], bool]] = {
    "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
    "flash": torch.backends.cuda.flash_sdp_enabled,
    "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    "math": torch.backends.cuda.math_sdp_enabled,
}
