"""CUDA's path through `scaled_dot_product_attention` on meta tensors, forward and backward.

From aten/src/ATen/native/transformers/attention.cpp of torch 2.13.
"""

import math
from typing import Any

import torch
from torch.nn.functional import pad

from .attention_backend import AttentionCall, Capability, choose
from .requests import HALF_DTYPES

aten = torch.ops.aten
# The rows of a mask in memory are multiples of this: mem_eff_alignment in preprocess_mask.
_MASK_ALIGNMENT = 8
_NO_KERNEL = "every backend that torch may use refuses this attention; allow SDPBackend.MATH"


def attend(
    capability: Capability,
    calls: set[AttentionCall],
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
    """Run the operations that CUDA would run on a GPU of this compute capability.

    The call is added to `calls`.
    """
    _validate(query, key, value, attn_mask)
    call = AttentionCall.now(
        query,
        key,
        value,
        attn_mask,
        capability=capability,
        dropout=dropout_p,
        is_causal=is_causal,
        enable_gqa=enable_gqa,
    )
    calls.add(call)
    backend = choose(call)
    if backend == "error":
        raise RuntimeError(_NO_KERNEL)
    mask = _additive(attn_mask, query.dtype)
    if backend == "math":
        return _math(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa)
    if backend == "flash":
        return _flash(query, key, value, dropout_p, is_causal, scale)
    kernel = aten._scaled_dot_product_cudnn_attention
    if backend == "efficient":
        mask = None if mask is None else _aligned(mask, query, key)
        kernel = aten._scaled_dot_product_efficient_attention
    # should_compute_logsumexp: the backward pass needs the logarithms of the sums.
    return kernel(query, key, value, mask, call.trains, dropout_p, is_causal, scale=scale)[0]


def cudnn_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: torch.Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """Return the outputs of cuDNN's kernel: run_cudnn_SDP_fprop in native/cudnn/MHA.cpp.

    torch's own meta kernel makes the logarithms of the sums even if they are not requested.
    """
    del attn_bias, dropout_p, is_causal, return_debug_mask, scale
    batch, heads, queries, _ = query.shape
    sums = (batch, heads, queries, 1) if compute_log_sumexp else (0,)
    # alloc_with_matching_layout: the axes have the query's order, broadcast ones outermost.
    inner_to_outer = sorted(range(4), key=lambda axis: query.stride(axis) or math.inf)
    shape = (batch, heads, queries, value.size(-1))
    output = torch.empty_permuted(shape, inner_to_outer[::-1], dtype=query.dtype, device="meta")
    return (
        torch.empty_like(query) if output.shape == query.shape else output,
        torch.empty(sums, dtype=torch.float32, device="meta"),
        None,
        None,
        queries,
        key.size(2),
        # The seed and the offset, on the device.
        torch.empty((), dtype=torch.int64, device="meta"),
        torch.empty((), dtype=torch.int64, device="meta"),
        None,
    )


def _validate(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
) -> None:
    """Raise RuntimeError for inputs that only validate_sdpa_input refuses."""
    dtypes = [tensor.dtype for tensor in (query, key, value)]
    if len(set(dtypes)) > 1:
        names = ", ".join(map(str, dtypes))
        raise RuntimeError(f"query, key and value must have one dtype, got {names}")
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise RuntimeError(f"attn_mask must be bool, float32 or {query.dtype}, got {mask.dtype}")


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return the mask as numbers to add: convert_boolean_attn_mask."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(-math.inf, dtype=dtype, device=mask.device))


def _aligned(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the mask as the efficient kernel takes it: preprocess_mask, pad_bias."""
    if mask.dtype != query.dtype:
        # _efficient_attention_forward
        raise RuntimeError(f"attn_mask must be bool or {query.dtype}, got {mask.dtype}")
    width = mask.size(-1)
    if mask.stride(-1) != 1 or any(stride % _MASK_ALIGNMENT for stride in mask.stride()[:-1]):
        mask = pad(mask, (0, _MASK_ALIGNMENT - width % _MASK_ALIGNMENT))[..., :width]
    return mask.expand(*query.shape[:3], key.size(2))


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Run flash attention on heads whose width is a multiple of 8: pad_last_dim."""
    width = query.size(-1)
    scale = width**-0.5 if scale is None else scale
    missing = -width % 8
    if missing:
        query, key, value = (pad(tensor, (0, missing)) for tensor in (query, key, value))
    kernel = aten._scaled_dot_product_flash_attention
    output = kernel(query, key, value, dropout, is_causal, scale=scale)[0]
    return output[..., :width] if missing else output


def _math(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    """Run _scaled_dot_product_attention_math.

    torch's own code would add the mask out of place under a dispatch mode, and hide the
    temporaries of the softmax.
    """
    dtype = query.dtype
    wide = query, key, value
    if dtype in HALF_DTYPES and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed():
        # These copies live until the end, as do the expanded keys and values.
        wide = query.float(), key.float(), value.float()
    factor = math.sqrt(query.size(-1) ** -0.5 if scale is None else abs(scale))
    scaled = wide[0] * (-factor if scale is not None and scale < 0 else factor)
    if is_causal and mask is not None:
        raise RuntimeError("the math kernel takes attn_mask or is_causal=True, got both")
    if is_causal:
        square = (query.size(-2), key.size(-2))
        mask = _additive(torch.ones(square, dtype=torch.bool, device="meta").tril(), scaled.dtype)
    keys, values = (_repeated(tensor, query) if enable_gqa else tensor for tensor in wide[1:])
    weights = torch.matmul(scaled, keys.transpose(-2, -1) * factor)
    if mask is not None:
        weights.add_(mask)
    weights = _SafeSoftmax.apply(weights)
    if dropout > 0:
        weights = torch.dropout(weights, dropout, True)
    # The second output is made first, and nothing uses it.
    _unused = weights.to(dtype)
    return torch.matmul(weights, values).to(dtype)


def _repeated(tensor: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Return a key or value for each head: pre_process_group_query_attention_input."""
    heads, queries = tensor.size(-3), query.size(-3)
    if queries % heads:
        raise RuntimeError(f"{heads} heads of keys or values do not divide {queries} of queries")
    return tensor if heads == queries else tensor.repeat_interleave(queries // heads, -3)


class _SafeSoftmax(torch.autograd.Function):
    """The operations inside _safe_softmax, which returns zeros for rows that are wholly masked."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        """Return the weights, the only tensor kept for the backward pass."""
        weights = torch.softmax(scores, -1)
        masked = torch.isneginf(scores)
        masked_rows = masked.all(-1, keepdim=True)
        zero = torch.scalar_tensor(0.0, dtype=weights.dtype, device=weights.device)
        torch.where(masked_rows, zero, weights, out=weights)
        # C++ frees the last one first.
        del zero, masked_rows, masked
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the scores."""
        (weights,) = ctx.saved_tensors
        return aten._softmax_backward_data(gradients[0], weights, -1, weights.dtype)
