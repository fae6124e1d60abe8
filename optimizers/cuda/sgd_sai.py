"""SGD-SaI's update on CUDA, in one pass over memory. sgd_sai.py has the rule."""

from __future__ import annotations

from torch import Tensor

from ..bucket import Bucket
from ..sharded import local
from .launching import addresses, chunks, launch, number

# Elements of a chunk and of one turn of a kernel's loop.
_CHUNK, _BLOCK = 2**14, 2**11


def update(bucket: Bucket) -> None:
    """Update a bucket whose ratios are taken; all its tensors are contiguous."""
    options, momentum = bucket.options, bucket.options["momentum"]
    params, grads = ([local(each) for each in tensors] for tensors in (bucket.params, bucket.grads))
    buffers = [local(each) for each in bucket.state("momentum_buffer")] if momentum else []
    ratios = bucket.state("gsnr")
    table, aligned = addresses(params, grads, buffers or params, scalars=[ratios])
    cut = chunks([param.numel() for param in params], _CHUNK, params[0].device)
    launch(
        "sgd_sai_kernels.update",
        cut.count,
        table,
        cut.sizes,
        cut.owners,
        cut.places,
        len(params),
        number(options["lr"]),
        1.0 - momentum,
        float(options["weight_decay"]),
        reads=[*grads, *ratios],
        writes=[*params, *buffers],
        WEIGHT=params[0].dtype,
        MOMENTUM=bool(momentum),
        TENSOR_LR=isinstance(options["lr"], Tensor),
        ALIGNED=aligned,
        CHUNK=_CHUNK,
        BLOCK=_BLOCK,
    )
