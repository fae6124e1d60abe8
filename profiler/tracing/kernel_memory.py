"""Memory that CUDA's kernels take for themselves, which no output of an operation shows.

Sizes are from ATen's CUDA sources, each named where it is used; docs/simulator.md lists what is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .reductions import REDUCTIONS
from .requests import Device, Kernel, Request, after_outputs, device_of

if TYPE_CHECKING:
    from .trace import Allocations, Segment

# parseChosenWorkspaceSize in aten/src/ATen/cuda/CublasHandlePool.cpp, by the major compute capability; cublasLt uses the same memory.
_WORKSPACE = 2 * 4096 * 1024 + 8 * 16 * 1024
_LARGE_WORKSPACE = 32 << 20
_AMD_WORKSPACE = 128 << 20

aten = torch.ops.aten
MATRIX_PRODUCTS = frozenset(
    {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default, aten.addmv.default}
)


def _workspace(device: Device) -> tuple[int]:
    if device.is_amd:
        return (_AMD_WORKSPACE,)
    return (_LARGE_WORKSPACE if device.compute_capability[0] >= 9 else _WORKSPACE,)


WORKSPACE = Request(_workspace, (), 0)


def workspace_bytes(gpu: str | None) -> int:
    """Bytes of cuBLAS's workspace on a GPU of the catalogue; without a name, on compute capability 9.0."""
    return WORKSPACE.nbytes(device_of(gpu))


def sized_for(segments: "Sequence[Segment]", allocations: "Allocations", gpu: str | None) -> "tuple[list[Segment], Allocations]":
    """The stream as it is on this GPU, without the requests that its kernels do not make."""
    device = device_of(gpu)
    nbytes = list(allocations.nbytes)
    for number, request in allocations.requests.items():
        nbytes[number] = request.nbytes(device)
    absent = {number for number in allocations.requests if not nbytes[number]}
    absent |= {~number for number in absent}
    if absent:
        segments = [replace(segment, events=[event for event in segment.events if event not in absent]) for segment in segments]
    return list(segments), replace(allocations, nbytes=nbytes)


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _efficient_attention_backward(_: Device, numbers: int, rows: int, is_float: bool) -> list[int]:
    """_efficient_attention_backward in native/transformers/cuda/attention_backward.cu: the sum over output times its gradient.

    The half-precision kernels work it out themselves; in float32 the product, its sum and the sum laid out anew are tensors.
    """
    return [4 * numbers, 4 * rows, 4 * rows] if is_float else [0, 0, 4 * rows]


def _of_efficient_attention_backward(_: Any, grad_out: torch.Tensor, *__: Any, **___: Any) -> tuple[int, int, bool]:
    return grad_out.numel(), grad_out.numel() // grad_out.size(-1), grad_out.dtype == torch.float32


def _flash_attention_backward(_: Device, heads: int, queries: int, width: int, repeated: int) -> list[int]:
    """mha_bwd in native/transformers/cuda/flash_attn/flash_api.cpp: float32 sums of the queries' gradients, and repeated keys."""
    rows = heads * _rounded(queries, 128)
    return [4 * rows, 4 * rows * _rounded(width, 32), repeated, repeated]


def _of_flash_attention_backward(
    _: Any, grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *__: Any, **___: Any
) -> tuple[int, ...]:
    del grad_out
    batch, heads, queries, width = query.shape
    repeated = 0 if key.size(1) == heads else batch * heads * key.size(2) * width * key.element_size()
    return batch * heads, queries, width, repeated


def _foreach_norm(_: Device, tensors: int, longest: int) -> list[int]:
    """foreach_tensor_norm_cuda in native/cuda/ForeachReduceOp.cu: a partial sum for each chunk of 65,536 numbers of the longest tensor."""
    return [4 * tensors * -(-longest // 65_536)]


def _of_foreach_norm(_: Any, tensors: list[torch.Tensor], *__: Any, **___: Any) -> tuple[int, int]:
    return len(tensors), max(tensor.numel() for tensor in tensors)


KERNELS: Mapping[Any, Kernel] = {
    **REDUCTIONS,
    aten._scaled_dot_product_efficient_attention_backward.default: Kernel(
        rule=_efficient_attention_backward, numbers=_of_efficient_attention_backward, order=after_outputs(3)
    ),
    aten._scaled_dot_product_flash_attention_backward.default: Kernel(
        rule=_flash_attention_backward, numbers=_of_flash_attention_backward, order=after_outputs(4)
    ),
    aten._foreach_norm.Scalar: Kernel(rule=_foreach_norm, numbers=_of_foreach_norm, order=after_outputs(1)),
}

# Operations by identity: to hash one takes longer than to look its number up.
TAKING = frozenset(map(id, (*MATRIX_PRODUCTS, *KERNELS)))
