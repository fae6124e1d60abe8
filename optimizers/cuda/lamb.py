"""LAMB's update on CUDA: the moments and the norms in one pass, the weights in a second one.

Without a trust ratio the first pass moves the weights too. lamb.py has the rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..bucket import Bucket
from ..lamb import choices_of, trust_ratios
from ..sharded import local, over_ranks
from .launching import addresses, chunks, launch, new_on_device, number

# Elements of a chunk and of one turn of a kernel's loop.
_CHUNK, _BLOCK = 2**14, 2**10


def update(bucket: Bucket) -> None:
    """Update a bucket; all its tensors are contiguous."""
    options, choices = bucket.options, choices_of(bucket.options)
    adapts = bool(options["weight_decay"] or choices["adapts_without_decay"])
    params, grads, first, second = (
        [local(each) for each in tensors]
        for tensors in (
            bucket.params,
            bucket.grads,
            bucket.state("exp_avg"),
            bucket.state("exp_avg_sq"),
        )
    )
    device, (beta1, beta2) = params[0].device, options["betas"]
    table, aligned = addresses(params, grads, first, second)
    cut = chunks([param.numel() for param in params], _CHUNK, device)
    lr, clip = number(options["lr"]), options.get("clip")
    shared = (
        *(table, cut.sizes, cut.owners, cut.places, len(params)),
        *(_divisors(bucket, device) if bucket.numbers else table, lr),
        *(float(options["eps"]), float(options["weight_decay"])),
    )
    constants = {
        "WEIGHT": params[0].dtype,
        "CORRECTED": bool(bucket.numbers),
        "TENSOR_LR": isinstance(lr, Tensor),
        "ALIGNED": aligned,
        "CHUNK": _CHUNK,
        "BLOCK": _BLOCK,
    }
    partials = torch.empty((2, max(cut.count, 1)), dtype=torch.float32, device=device)
    launch(
        "lamb_kernels.average",
        cut.count,
        *(
            *shared,
            1.0 - beta1,
            float(beta2),
            1.0 - beta2,
            table if clip is None else clip,
            partials,
        ),
        reads=[*grads, *(params if adapts else [])],
        writes=[*first, *second, *([] if adapts else params)],
        ADAPTS=adapts,
        CLIPPED=clip is not None,
        **constants,
    )
    if not adapts:
        return
    squares = torch.empty((2, len(params)), dtype=torch.float32, device=device)
    launch(
        "shared_kernels.total",
        len(params),
        *(partials, cut.firsts, cut.count, squares, len(params)),
        reads=[partials],
        writes=[squares],
        BLOCK=_BLOCK,
    )
    weight_norms, direction_norms = over_ranks(squares, bucket.params[0], torch.sum).sqrt()
    ratios = trust_ratios(weight_norms, direction_norms, choices)
    launch(
        "lamb_kernels.descend",
        cut.count,
        *(*shared, ratios),
        reads=[*first, *second],
        writes=params,
        **constants,
    )


def _divisors(bucket: Bucket, device: torch.device) -> Tensor:
    """Return the bias corrections: two rows, a column a parameter."""
    rows: list[list[Any]] = [bucket.numbers[name] for name in ("first", "second")]
    if isinstance(rows[0][0], Tensor):
        return torch.stack([torch.stack(row) for row in rows]).float()
    return new_on_device([float(each) for row in rows for each in row], device)
