"""Repeats: an update of our optimizers that equals an earlier one requests the same memory.

Models repeat their layers, so the buckets of a step do too. An update reads nothing but its bucket,
and an initial state nothing but the parameter and its options. Without the values of tensors, those
of equal layouts can be recorded again without running.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from optprof.optimizers import lamb16, sgd_sai, ways
from optprof.optimizers.bucket import Bucket, Options, State
from optprof.optimizers.multi_tensor import MultiTensorOptimizer

from .trace import Recorder


@contextmanager
def repeated_updates(recorder: Recorder, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Record an update or a state like an earlier one without making it, if no values are followed.

    `optimizer` makes the states.
    """
    runners = {way: partial(_run, recorder, run) for way, run in ways.RUNNERS.items()}
    update_pack = partial(_run, recorder, lamb16.update_pack)
    ratio = partial(_ratio, recorder, sgd_sai.signal_to_noise)
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(ways, "RUNNERS", runners))
        patches.enter_context(mock.patch.object(lamb16, "update_pack", update_pack))
        patches.enter_context(mock.patch.object(sgd_sai, "signal_to_noise", ratio))
        if isinstance(optimizer, MultiTensorOptimizer):
            make = partial(_state, recorder, optimizer._initial_state)
            patches.enter_context(mock.patch.object(optimizer, "_initial_state", make))
        yield


def _state(
    recorder: Recorder,
    make: Callable[[torch.Tensor, Options], State],
    param: torch.Tensor,
    options: Options,
) -> State:
    if param.grad is not None and param.grad.is_sparse:
        return make(param, options)
    return recorder.repeat(("state", id(options), _layout(param)), partial(make, param, options))


def _ratio(
    recorder: Recorder,
    take: Callable[[torch.Tensor, float], torch.Tensor],
    grad: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    return recorder.repeat(("ratio", eps, _layout(grad)), partial(take, grad, eps))


def _run(recorder: Recorder, run: Callable[..., None], *arguments: Any) -> None:
    *optimizer, bucket = arguments
    recorder.repeat((id(run), *map(id, optimizer), *_key(bucket)), partial(run, *arguments))


def _key(bucket: Bucket) -> tuple[Any, ...]:
    options = [(name, value) for name, value in bucket.options.items() if name != "params"]
    tensors = (bucket.params, bucket.grads, *(state.values() for state in bucket.states))
    return (
        *(_layout(tensor) for each in tensors for tensor in each),
        *(tuple(state) for state in bucket.states),
        # By id: numbers and flags of one group are the same objects in all its buckets.
        *(
            (name, _layout(value) if isinstance(value, torch.Tensor) else id(value))
            for name, value in options
        ),
        *((name, *numbers) for name, numbers in bucket.numbers.items()),
        bucket.largest,
    )


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (
        type(tensor), tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype,
        tensor.device.type,
    )  # fmt: skip
