"""The kernel that CUDA picks for `scaled_dot_product_attention`, by the rules of torch 2.13.

The rules are in aten/src/ATen/native/transformers: cuda/sdp_utils.cpp and sdp_utils_cpp.h. Each
one here names its function there. Nested tensors, float8 and FlashAttention 3 are left out.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

Backend = Literal["cudnn", "flash", "efficient", "math"]
Capability = tuple[int, int]

# A ROCm build gives this for an MI300X.
_AMD = (9, 4)
_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Operand:
    """The properties of a tensor that the choice depends on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = False

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Operand":
        """Return the operand that stands for a tensor."""
        return cls(
            shape=tuple(tensor.shape),
            stride=tensor.stride(),
            dtype=tensor.dtype,
            requires_grad=tensor.requires_grad,
        )


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of `scaled_dot_product_attention`: sdp_params, and the mode of autograd."""

    query: Operand
    key: Operand
    value: Operand
    mask: Operand | None = None
    dropout: float = 0.0
    is_causal: bool = False
    enable_gqa: bool = False
    grad_enabled: bool = True

    @property
    def trains(self) -> bool:
        """Return whether a backward pass will follow: input_requires_grad."""
        return self.grad_enabled and any(operand.requires_grad for operand in self.operands)

    @property
    def operands(self) -> tuple[Operand, Operand, Operand]:
        """The query, the key and the value."""
        return self.query, self.key, self.value


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The GPU, and what the user has switched on; `order` is the user's own, or None."""

    capability: Capability = (9, 0)
    enabled: frozenset[Backend] = frozenset(("cudnn", "flash", "efficient", "math"))
    order: tuple[Backend, ...] | None = None
    deterministic: bool = False

    @classmethod
    def current(cls, capability: Capability) -> "Settings":
        """Return torch's settings as they are now, for a GPU of this compute capability."""
        order = tuple(_get_order())
        return cls(
            capability=capability,
            enabled=frozenset(name for name, is_on in _SWITCHES.items() if is_on()),
            order=None if order == _USUAL_ORDER else tuple(_NAMES[n] for n in order if n in _NAMES),
            # "warn_only" is 1.
            deterministic=torch.get_deterministic_debug_mode() == 2,
        )


def choose(call: Call, settings: Settings) -> Backend | Literal["error"]:
    """Return the first backend in order that takes the call, or "error": select_sdp_backend."""
    for backend in settings.order or _preference(settings.capability):
        if backend in settings.enabled and _TAKES[backend](call, settings):
            return backend
    return "error"


def depends_on(seen: Iterable[tuple[Call, Settings]], capability: Capability) -> bool:
    """Return whether a GPU of this compute capability would choose otherwise for one of the
    calls.
    """
    return any(
        choose(call, settings) != choose(call, replace(settings, capability=capability))
        for call, settings in seen
    )


def _preference(capability: Capability) -> tuple[Backend, ...]:
    """check_prefer_cudnn_attention: cuDNN above 9.15.0 goes first on Hopper and on B200 and B300.

    torch has the rule since 2.10; the wheels bring a cuDNN that is new enough since 2.11 (9.19).
    Elsewhere cuDNN comes last, behind math: Context::sDPPriorityOrder.
    """
    if capability[0] in (9, 10) and capability[1] in (0, 3):
        return "cudnn", "flash", "efficient", "math"
    return "flash", "efficient", "math", "cudnn"


def _can_use_cudnn(call: Call, settings: Settings) -> bool:
    """can_use_cudnn_attention, of a cuDNN above 9.15.0."""
    return (
        settings.capability != _AMD
        and _is_four_dimensional(call)
        and not settings.deterministic
        and _shares_dtype(call, _low_precision(settings.capability))
        and _fits_mask(call)
        and (8, 0) <= settings.capability <= (12, 1)
        # check_cudnn_dropout: its probabilities are multiples of 1/16. Torch 2.11 has no such rule.
        and (16 * call.dropout).is_integer()
        and _has_tokens(call)
        and _has_dense_rows(call, ignore_width_of_one=True)
        and _fits_heads(call, supports_gqa=True, same_key_and_value=False)
        and _fits_cudnn(call, settings.capability)
    )


def _can_use_flash(call: Call, settings: Settings) -> bool:
    """can_use_flash_attention."""
    width = call.query.shape[-1]
    return (
        _is_four_dimensional(call)
        and call.mask is None
        # check_head_dim_size_flash, aotriton_max_hdim
        and all(operand.shape[-1] == width for operand in call.operands)
        and width <= (512 if settings.capability == _AMD else 256)
        # check_flash_attention_hardware_support
        and (8, 0) <= settings.capability <= (12, 1)
        and _has_flash_backward(call, settings.capability)
        # check_flash_causal_non_square_seqlens
        and not (call.is_causal and call.query.shape[-2] != call.key.shape[-2])
        and _shares_dtype(call, _low_precision(settings.capability))
        and _fits_heads(call, supports_gqa=True, same_key_and_value=True)
        and _has_tokens(call)
        and _has_dense_rows(call, ignore_width_of_one=True)
    )


def _can_use_efficient(call: Call, settings: Settings) -> bool:
    """can_use_mem_efficient_attention."""
    old = settings.capability[0] < 8
    return (
        # check_mem_efficient_hardware_support
        (5, 0) <= settings.capability <= (12, 1)
        and _is_four_dimensional(call)
        and _fits_efficient(call, settings.capability)
        and _has_tokens(call)
        and _has_dense_rows(call, ignore_width_of_one=False)
        # Grouped heads are refused even where enable_gqa asks for them.
        and _fits_heads(call, supports_gqa=False, same_key_and_value=True)
        and _shares_dtype(call, (torch.float16, torch.float32, *(() if old else (torch.bfloat16,))))
    )


def _can_use_math(call: Call, settings: Settings) -> bool:
    """Math takes everything."""
    del call, settings
    return True


_TAKES: Mapping[Backend, Callable[[Call, Settings], bool]] = {
    "cudnn": _can_use_cudnn,
    "flash": _can_use_flash,
    "efficient": _can_use_efficient,
    "math": _can_use_math,
}


def _is_four_dimensional(call: Call) -> bool:
    """check_tensor_shapes."""
    return all(len(operand.shape) == 4 for operand in call.operands)


def _shares_dtype(call: Call, allowed: tuple[torch.dtype, ...]) -> bool:
    """check_tensor_dtype."""
    return {operand.dtype for operand in call.operands} <= {call.query.dtype} & set(allowed)


def _low_precision(capability: Capability) -> tuple[torch.dtype, ...]:
    """check_dtypes_low_precision."""
    return _HALF if capability[0] >= 8 else (torch.float16,)


def _has_tokens(call: Call) -> bool:
    """check_nonzero_sequence_lengths_dense."""
    return call.query.shape[-2] != 0 and call.key.shape[-2] != 0


def _has_dense_rows(call: Call, *, ignore_width_of_one: bool) -> bool:
    """check_last_dim_stride_equals_1_dense."""
    dense = all(operand.stride[-1] == 1 for operand in call.operands)
    dense = dense or (ignore_width_of_one and call.query.shape[-1] == 1)
    return dense and (call.mask is None or call.mask.stride[-1] == 1)


def _fits_heads(call: Call, *, supports_gqa: bool, same_key_and_value: bool) -> bool:
    """check_batch_size_and_num_heads_dense, check_grouped_query_attention."""
    if len({operand.shape[0] for operand in call.operands}) > 1:
        return False
    queries, keys, values = (operand.shape[-3] for operand in call.operands)
    if not (call.enable_gqa and supports_gqa):
        return queries == keys == values
    if same_key_and_value:
        return keys == values and queries % keys == 0
    return queries % keys == 0 and queries % values == 0


def _fits_mask(call: Call) -> bool:
    """check_attn_mask_shape."""
    if call.mask is None:
        return True
    batch, heads, queries, _ = call.query.shape
    shape = call.mask.shape
    full = (batch, heads, queries, call.key.shape[2])
    if call.mask.requires_grad or len(shape) not in (2, 4):
        return False
    return all(size in (1, whole) for size, whole in zip(shape, full[-len(shape) :], strict=True))


def _fits_cudnn(call: Call, capability: Capability) -> bool:
    """check_cudnn_tensor_shapes."""
    width, value_width = call.query.shape[-1], call.value.shape[-1]
    limit = 256 if capability == (9, 0) else 128
    if capability[0] == 10 and (width, value_width) == (192, 128):
        limit = 192
    return (
        max(width, value_width) <= limit
        and width % 8 == 0
        and value_width % 8 == 0
        and call.key.shape[2] != 1
        and not (call.dropout and call.query.shape[2] == 1)
    )


def _has_flash_backward(call: Call, capability: Capability) -> bool:
    """check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120."""
    if not call.trains or not ((8, 6) <= capability <= (8, 9) or capability in ((12, 0), (12, 1))):
        return True
    width = call.query.shape[-1]
    return width <= 192 or (width > 224 and not call.dropout)


def _fits_efficient(call: Call, capability: Capability) -> bool:
    """check_head_dim_size_mem_efficient, minimum_gemm_alignment."""
    width, key_width, value_width = (operand.shape[-1] for operand in call.operands)
    if capability == _AMD and (value_width != width or width > 512):
        return False
    half = call.query.dtype in _HALF
    # Tensor cores take rows of 16 bytes: those of Volta and Turing in half precision alone.
    alignment = (8 if half else 4) if capability[0] >= 8 or (half and capability[0] == 7) else 1
    if width != key_width or 0 in (width, value_width):
        return False
    return width % alignment == 0 and value_width % alignment == 0


# at::SDPBackend; 4 is for other devices.
_NAMES: Mapping[int, Backend] = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
_USUAL_ORDER = (1, 2, 0, 3, 4)
# The stubs of torch do not have it.
_get_order: Callable[[], list[int]] = getattr(torch._C, "_get_sdp_priority_order")  # noqa: B009
_SWITCHES: Mapping[Backend, Callable[[], bool]] = {
    "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
    "flash": torch.backends.cuda.flash_sdp_enabled,
    "efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
    "math": torch.backends.cuda.math_sdp_enabled,
}
