"""Repeats: an update of our optimizers that equals an earlier one requests the same memory.

Models repeat their layers, so the buckets of a step do too. An update reads nothing but its bucket,
and one that ends with all its memory freed can be recorded again without running.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from optprof.optimizers import lamb16, ways
from optprof.optimizers.bucket import Bucket

from .trace import Recorder


@contextmanager
def repeated_updates(recorder: Recorder) -> Iterator[None]:
    """Record an update like an earlier one without running it, if no values are followed."""
    runners = {way: partial(_run, recorder, run) for way, run in ways.RUNNERS.items()}
    update_pack = partial(_run, recorder, lamb16.update_pack)
    with (
        mock.patch.object(ways, "RUNNERS", runners),
        mock.patch.object(lamb16, "update_pack", update_pack),
    ):
        yield


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
