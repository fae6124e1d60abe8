"""Memory that CUDA's kernels take for themselves, which no output of an operation shows: workspaces that stay, temporaries that go.

Sizes are from ATen's CUDA sources, each named where it is used; docs/simulator.md lists what is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from scenarios import hardware

if TYPE_CHECKING:
    from .trace import Allocations

# parseChosenWorkspaceSize in aten/src/ATen/cuda/CublasHandlePool.cpp, by the major compute capability; cublasLt uses the same memory.
_WORKSPACE = 2 * 4096 * 1024 + 8 * 16 * 1024
_LARGE_WORKSPACE = 32 << 20
_AMD_WORKSPACE = 128 << 20
_AMD = (9, 4)
USUAL_WORKSPACE = _LARGE_WORKSPACE

aten = torch.ops.aten
MATRIX_PRODUCTS = frozenset(
    {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default, aten.addmv.default}
)


def workspace_bytes(gpu: str | None) -> int:
    """Bytes of cuBLAS's workspace on a GPU of the catalogue; without a name, on compute capability 9.0."""
    if gpu is None:
        return USUAL_WORKSPACE
    capability = hardware.describe(gpu).compute_capability
    if capability == _AMD:
        return _AMD_WORKSPACE
    return _LARGE_WORKSPACE if capability[0] >= 9 else _WORKSPACE


def sized_for(allocations: "Allocations", gpu: str | None) -> "Allocations":
    """The allocations as they are on this GPU: a trace has the workspaces of compute capability 9.0."""
    size = workspace_bytes(gpu)
    pairs = zip(allocations.nbytes, allocations.categories, strict=True)
    return replace(allocations, nbytes=[size if category == "workspace" else nbytes for nbytes, category in pairs])


def temporaries(func: Any, args: tuple[Any, ...]) -> list[int]:
    """Bytes of what the operation holds beside its outputs while it runs, in the order in which it asks for them."""
    found = _TEMPORARIES.get(func)
    return [] if found is None else found(*args)


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _efficient_attention_backward(grad_out: torch.Tensor, *_: Any) -> list[int]:
    """_efficient_attention_backward in native/transformers/cuda/attention_backward.cu: the sum over output times its gradient.

    The half-precision kernels work it out themselves; in float32 the product, its sum and the sum laid out anew are tensors.
    """
    delta = 4 * grad_out.numel() // grad_out.size(-1)
    return [4 * grad_out.numel(), delta, delta] if grad_out.dtype == torch.float32 else [delta]


def _flash_attention_backward(grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any) -> list[int]:
    """mha_bwd in native/transformers/cuda/flash_attn/flash_api.cpp: float32 sums of the queries' gradients, and repeated keys."""
    del grad_out
    batch, heads, queries, width = query.shape
    rows = batch * heads * _rounded(queries, 128)
    repeated = 0 if key.size(1) == heads else batch * heads * key.size(2) * width * key.element_size()
    return [4 * rows, 4 * rows * _rounded(width, 32), *([repeated] * 2 if repeated else [])]


def _foreach_norm(tensors: list[torch.Tensor], *_: Any) -> list[int]:
    """foreach_tensor_norm_cuda in native/cuda/ForeachReduceOp.cu: a partial sum for each chunk of 65,536 numbers of the longest tensor."""
    chunks = max(-(-tensor.numel() // 65_536) for tensor in tensors)
    return [4 * len(tensors) * chunks]


_TEMPORARIES: Mapping[Any, Callable[..., list[int]]] = {
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_attention_backward,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_attention_backward,
    aten._foreach_norm.Scalar: _foreach_norm,
}

# Operations by identity: to hash one takes longer than to look its number up.
TAKING = frozenset(map(id, (*MATRIX_PRODUCTS, *_TEMPORARIES)))
