"""The chunks that LAMB16 works on: slices of a large parameter, or small parameters together."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .bucket import Bucket, Tensors
from .float8 import PERIOD, dither_e4m3, dither_e5m2
from .sharded import first_element, is_sharded, local

FORMATS = {"exp_avg": torch.float8_e4m3fn, "exp_avg_sq": torch.float8_e5m2}

# Elements of a chunk. A chunk with its temporaries takes less than two float32 tensors of the
# largest parameter's size, or half a MiB, and stays in a processor's cache.
_SHARE = 4
_LEAST_ELEMENTS = 2**14
_MOST_ON_CPU = 2**17
_DITHERS = (dither_e4m3, dither_e5m2)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some rows of a parameter, or several small parameters, with gradients and moments' codes.

    The codes of several parameters are concatenated. `thresholds` round them. `room` is three
    float32 tensors of the same size, for both moments and temporaries, and `views` the same memory
    parameter by parameter.
    """

    params: list[Tensor]
    grads: list[Tensor]
    codes: tuple[Tensor, Tensor]
    thresholds: tuple[Tensor, Tensor] | None
    room: tuple[Tensor, Tensor, Tensor]
    views: tuple[Tensors, Tensors, Tensors]

    def spread(self, numbers: Tensor) -> Tensor:
        """Return numbers, one a parameter, as factors of `room`."""
        if len(self.params) == 1:
            return numbers
        return torch.cat(
            [
                number.expand(len(param))
                for number, param in zip(numbers.unbind(), self.params, strict=True)
            ]
        )


def packs(bucket: Bucket) -> Iterator[Bucket]:
    """Yield large parameters one by one, and small ones together up to the size of a slice."""
    most = _most_elements(bucket)
    pack: list[int] = []
    total = 0
    for index, tensors in enumerate(zip(*tensors_of(bucket), strict=True)):
        count = tensors[0].numel()
        alone = is_sharded(tensors[0]) or not all(tensor.is_contiguous() for tensor in tensors)
        if alone or count > most or torch.compiler.is_compiling():
            yield bucket.select([index])
            continue
        if total + count > most:
            yield bucket.select(pack)
            pack, total = [], 0
        pack.append(index)
        total += count
    if pack:
        yield bucket.select(pack)


def _most_elements(bucket: Bucket) -> int:
    most = max(bucket.largest // _SHARE, _LEAST_ELEMENTS)
    return min(most, _MOST_ON_CPU) if bucket.params[0].is_cpu else most


def tensors_of(bucket: Bucket) -> list[list[Tensor]]:
    """Return the parameters, the gradients, and the codes of both moments."""
    return [bucket.params, bucket.grads, *(bucket.state(key) for key in FORMATS)]


def combined(bucket: Bucket) -> Chunk:
    """Return several contiguous parameters as one chunk."""
    params, grads, *moments = (
        [tensor.view(-1) for tensor in tensors] for tensors in tensors_of(bucket)
    )
    counts = [len(param) for param in params]
    codes = [
        torch.cat([tensor.view(torch.uint8) for tensor in each]).view(each[0].dtype)
        for each in moments
    ]
    thresholds: list[Tensor] = []
    # The scale "upstream" rounds to nearest and has no phases.
    for dither, phases in zip(_DITHERS, bucket.numbers.values(), strict=False):
        turned = {phase: dither(max(counts), phase, params[0].device) for phase in set(phases)}
        thresholds.append(
            torch.cat([turned[phase][:count] for phase, count in zip(phases, counts, strict=True)])
        )
    room = [params[0].new_empty(sum(counts), dtype=torch.float32) for _ in range(3)]
    return Chunk(
        params=params,
        grads=grads,
        codes=(codes[0], codes[1]),
        thresholds=(thresholds[0], thresholds[1]) if thresholds else None,
        room=(room[0], room[1], room[2]),
        views=(room[0].split(counts), room[1].split(counts), room[2].split(counts)),
    )


def slices(bucket: Bucket) -> Iterator[Chunk]:
    """Yield slices of a parameter, of whole rows unless all is contiguous.

    All share the same `room`, one after the other. Compiled code, which has no temporaries, gets
    one slice. A shard is rounded as its rows are in the whole tensor.
    """
    first = first_element(bucket.params[0])
    tensors = [local(each) for (each,) in tensors_of(bucket)]
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = [tensor.view(-1) for tensor in tensors]
    count, rows, device = tensors[0].numel(), tensors[0].shape[0], tensors[0].device
    if not count:
        return
    compiling = torch.compiler.is_compiling()
    length, row = (
        rows if compiling else max(1, _most_elements(bucket) * rows // count),
        count // rows,
    )
    phases = [phase for (phase,) in bucket.numbers.values()]
    thresholds = [
        dither(min(first + count, PERIOD + length * row), phase, device)
        for dither, phase in zip(_DITHERS, phases, strict=False)
    ]
    rooms = [
        tensors[0].new_empty((min(length, rows), *tensors[0].shape[1:]), dtype=torch.float32)
        for _ in range(3)
    ]
    # Not range(0, rows, rows), which would make the compiler treat the size as a constant.
    for start in (0,) if compiling else range(0, rows, length):
        param, grad, exp_avg, exp_avg_sq = (tensor[start : start + length] for tensor in tensors)
        place = (first + start * row) % PERIOD
        chosen = [each[place : place + param.numel()].view(param.shape) for each in thresholds]
        room = [each if len(each) == len(param) else each[: len(param)] for each in rooms]
        yield Chunk(
            params=[param],
            grads=[grad],
            codes=(exp_avg, exp_avg_sq),
            thresholds=(chosen[0], chosen[1]) if chosen else None,
            room=(room[0], room[1], room[2]),
            views=([room[0]], [room[1]], [room[2]]),
        )
