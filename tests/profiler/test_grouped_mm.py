"""Grouped products on meta tensors, compared with real ones on the CPU."""

from typing import Any

import pytest
import torch
from torch.nn.functional import grouped_mm

from optprof.profiler.tracing.autocast import cuda_autocast
from optprof.profiler.tracing.kernels import cuda_kernels

TOKENS, INNER, WIDTH, EXPERTS = 32, 24, 40, 4
SHAPES = {
    "tokens by experts": ((TOKENS, INNER), (EXPERTS, INNER, WIDTH)),
    "odd outputs": ((TOKENS, INNER), (EXPERTS, 38, INNER)),
    "experts by tokens": ((EXPERTS, WIDTH, INNER), (INNER, TOKENS)),
    "tokens by tokens": ((INNER, TOKENS), (TOKENS, WIDTH)),
    "experts by experts": ((EXPERTS, TOKENS, INNER), (EXPERTS, INNER, WIDTH)),
}


def layouts(device: str, case: str, dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Return shape, strides and dtype of the output and of both gradients."""
    left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in SHAPES[case])
    # A weight is stored with a row for each output.
    right = right.mT if case == "odd outputs" else right
    size = TOKENS // EXPERTS
    ends = torch.arange(size, TOKENS + 1, size, dtype=torch.int32, device=device)
    left, right = left.requires_grad_(), right.requires_grad_()
    output = grouped_mm(left, right, offs=None if left.dim() == right.dim() == 3 else ends)
    # A gradient with the row offsets of the output, as the next layer makes it.
    gradient = torch.empty_strided(output.shape, output.stride(), dtype=dtype, device=device)
    gradients = torch.autograd.grad(output, (left, right), gradient)
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in (output, *gradients)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", SHAPES)
def test_outputs_and_gradients_have_the_layout_of_the_cpu(case: str, dtype: torch.dtype):
    with cuda_kernels():
        assert layouts("meta", case, dtype) == layouts("cpu", case, dtype)


def test_autocast_does_not_cast_a_grouped_product():
    with torch.device("meta"):
        tokens, experts = torch.empty(TOKENS, INNER), torch.empty(EXPERTS, INNER, WIDTH)
        ends = torch.empty(EXPERTS, dtype=torch.int32)
    with cuda_kernels(), cuda_autocast(), torch.autocast("cuda", dtype=torch.bfloat16):
        assert grouped_mm(tokens, experts, offs=ends).dtype == torch.float32


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (torch.empty(8, 16).double(), torch.empty(2, 16, 8), "takes bf16, fp16 and fp32, got"),
        (torch.empty(8, 16), torch.empty(2, 24, 8), r"cannot multiply \(8, 16\) by \(2, 24, 8\)"),
        (torch.empty(8, 16), torch.empty(3, 16, 8), r"takes one number of groups, got \[2, 3\]"),
        (torch.empty(8, 16), torch.empty(2, 16, 6), "multiples of 16 bytes, got a stride of 6"),
        (torch.empty(8, 16), torch.empty(2, 8, 16, 2)[..., 0].mT, "rows or columns without gaps"),
    ],
)
def test_a_product_that_torch_refuses_is_refused_in_one_line(
    left: torch.Tensor,
    right: torch.Tensor,
    message: str,
):
    ends = torch.tensor([4, 8], dtype=torch.int32)
    with pytest.raises(RuntimeError):
        grouped_mm(left, right, offs=ends)
    right = torch.empty_strided(right.shape, right.stride(), dtype=right.dtype, device="meta")
    with cuda_kernels(), pytest.raises(RuntimeError, match=message):
        grouped_mm(left.to("meta"), right, offs=ends.to("meta"))
