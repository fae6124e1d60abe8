"""LAMB16's update on CUDA: scales and trust need a first pass, and the second one stores.

lamb16.py has the rule, float8.py the formats of the moments and their rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..bucket import Bucket
from ..float8 import E4M3_TAIL, E5M2_TAIL
from ..lamb16 import LEAST_SECOND, SCALE_KEYS, Scales, new_scales, trust_ratios, with_norm_kept
from ..lamb16_chunks import tensors_of
from ..sharded import first_element, local, over_ranks
from .launching import addresses, chunks, launch, new_on_device, number, on_device

# Elements of a chunk and of one turn of a kernel's loop.
_CHUNK, _BLOCK = 2**14, 2**10


def update(bucket: Bucket) -> None:
    """Update a bucket, whose scale is "max"; all its tensors are contiguous."""
    options, (beta1, beta2), lr = (
        bucket.options,
        bucket.options["betas"],
        number(bucket.options["lr"]),
    )
    params, grads, first, second = ([local(each) for each in list_] for list_ in tensors_of(bucket))
    scales = [[local(each) for each in bucket.state(key)] for key in SCALE_KEYS]
    device, like, count = params[0].device, bucket.params[0], len(params)
    table, aligned = addresses(params, grads, first, second, scalars=scales)
    cut = chunks([param.numel() for param in params], _CHUNK, device)
    shared = (
        *(table, cut.sizes, cut.owners, cut.places, count, float(beta1), 1.0 - beta1),
        *(float(beta2), 1.0 - beta2, LEAST_SECOND),
        *(float(options["eps"]), float(options["weight_decay"])),
    )
    constants = {
        "WEIGHT": params[0].dtype,
        "ALIGNED": aligned,
        "CHUNK": _CHUNK,
        "BLOCK": _BLOCK,
    }
    partials = torch.empty((4, max(cut.count, 1)), dtype=torch.float32, device=device)
    launch(
        "lamb16_kernels.measure",
        cut.count,
        *(*shared, partials),
        reads=[*params, *grads, *first, *second],
        writes=[partials],
        **constants,
    )
    measures = torch.empty((4, count), dtype=torch.float32, device=device)
    launch(
        "lamb16_kernels.combine",
        count,
        *(partials, cut.firsts, cut.count, measures, count),
        reads=[partials],
        writes=[measures],
        BLOCK=_BLOCK,
    )
    new = new_scales(over_ranks(measures[:2], like, torch.amax), [], options)
    trust = trust_ratios(over_ranks(measures[2:], like, torch.sum), options)
    factors = torch.stack([new.first.reciprocal(), new.second.reciprocal(), trust])
    launch(
        "lamb16_kernels.advance",
        cut.count,
        *(*shared, factors, _turns(bucket, device), _places(bucket, device), lr, partials),
        reads=grads,
        writes=[*params, *first, *second],
        TENSOR_LR=isinstance(lr, Tensor),
        **constants,
    )
    squares = torch.empty((2, count), dtype=torch.float32, device=device)
    launch(
        "shared_kernels.total",
        count,
        *(partials, cut.firsts, cut.count, squares, count),
        reads=[partials],
        writes=[squares],
        BLOCK=_BLOCK,
    )
    new: Scales = with_norm_kept(new, over_ranks(squares, like, torch.sum))
    for tensors, values in zip(scales, new, strict=True):
        torch._foreach_copy_(tensors, values.unbind())  # pyright: ignore[reportPrivateImportUsage]


def _turns(bucket: Bucket, device: torch.device) -> Tensor:
    """Return the shift of each parameter's thresholds: a row for each moment, as whole numbers."""
    rows: list[tuple[list[Any], float]] = [
        (phases, 2.0**tail)
        for phases, tail in zip(bucket.numbers.values(), (E4M3_TAIL, E5M2_TAIL), strict=True)
    ]
    if isinstance(rows[0][0][0], Tensor):
        return torch.stack([torch.stack(phases) * unit for phases, unit in rows]).to(torch.int32)
    # A float32 holds 2^21 exactly.
    return new_on_device([int(phase * unit) for phases, unit in rows for phase in phases], device)


def _places(bucket: Bucket, device: torch.device) -> Tensor:
    """Return the place of each shard's first element in its whole tensor."""
    return on_device(tuple(map(first_element, bucket.params)), torch.int64, device)
