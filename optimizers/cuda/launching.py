"""Launching: the tables by which one kernel finds many tensors, and the launch itself.

A table of addresses has a row for each kind of tensor (parameters, gradients ...) and a column for
each parameter. A large tensor is cut into chunks of equal length, and each program of a kernel has
one chunk, so that a launch serves any number of tensors of any size.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes of the widest load; the kernels use it if all addresses are multiples of it."""


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """The chunks of a list of tensors, on their device.

    `sizes` has the count of elements of each tensor, int64. `owners` has the tensor of each chunk
    and `places` its number within that tensor, both int32. `firsts` has the first chunk of each
    tensor and, at its end, the count of all; int32.
    """

    sizes: Tensor
    owners: Tensor
    places: Tensor
    firsts: Tensor
    count: int


def addresses(
    *lists: Sequence[Tensor], scalars: Sequence[Sequence[Tensor]] = ()
) -> tuple[Tensor, bool]:
    """Return the addresses of lists of equal length as an int64 table, and if all are aligned.

    Lists of `scalars` follow in the table; their alignment does not matter.
    """
    wide, narrow = (
        [tensor.data_ptr() for tensors in each for tensor in tensors] for each in (lists, scalars)
    )
    aligned = functools.reduce(operator.or_, wide, 0) % ALIGNMENT == 0
    return on_device((*wide, *narrow), torch.int64, lists[0][0].device), aligned


def chunks(counts: Sequence[int], length: int, device: torch.device) -> Chunks:
    """Return the chunks of tensors with these counts of elements; each has `length` or fewer."""
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        stream = torch.cuda.current_stream(device).cuda_stream
        return _kept_chunks(tuple(counts), length, device, stream)
    return _chunks(tuple(counts), length, device)


@functools.lru_cache(maxsize=64)
def _kept_chunks(counts: tuple[int, ...], length: int, device: torch.device, stream: int) -> Chunks:
    """Return chunks without a look at their tables, which may have 100,000 rows."""
    del stream  # as in `_kept`
    return _chunks(counts, length, device)


def _chunks(counts: tuple[int, ...], length: int, device: torch.device) -> Chunks:
    layout = _layout(counts, length)
    owners, places, firsts = (on_device(each, torch.int32, device) for each in layout)
    return Chunks(
        sizes=on_device(counts, torch.int64, device),
        owners=owners,
        places=places,
        firsts=firsts,
        count=len(layout[0]),
    )


@functools.lru_cache(maxsize=64)
def _layout(counts: tuple[int, ...], length: int) -> tuple[tuple[int, ...], ...]:
    owners, places, firsts = [], [], [0]
    for index, count in enumerate(counts):
        cut = -(-count // length)
        owners += [index] * cut
        places += range(cut)
        firsts.append(len(owners))
    return tuple(owners), tuple(places), tuple(firsts)


def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on the device; the host does not wait.

    Equal numbers give the same tensor as before, so that a step over unchanged addresses copies
    nothing. It must not be changed.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    if not torch.cuda.is_current_stream_capturing():
        return _kept(values, dtype, device, stream)
    # A replay copies from the same memory of the host again, and it fills the graph's own memory,
    # which a step outside of the graph must not read.
    pair = _copied(values, dtype, device)
    _captured.append(pair)
    return pair[1]


def new_on_device(values: Sequence[float], device: torch.device) -> Tensor:
    """Return numbers that change from step to step as a new float32 tensor on the device."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.float32, device=device)
    return _copied(tuple(values), torch.float32, device)[1]


def number(option: float | Tensor) -> float | Tensor:
    """Return a kernel's number; Triton would compile another variant for a whole one."""
    return option if isinstance(option, Tensor) else float(option)


_captured: list[tuple[Tensor, Tensor]] = []


@functools.lru_cache(maxsize=256)
def _kept(
    values: tuple[float, ...], dtype: torch.dtype, device: torch.device, stream: int
) -> Tensor:
    del stream  # a copy is ordered only before the work of its own stream
    return _copied(values, dtype, device)[1]


def _copied(
    values: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    host = torch.tensor(values, dtype=dtype, pin_memory=True)
    return host, host.to(device, non_blocking=True)


def launch(
    kernel: str,
    programs: int,
    *arguments: Any,
    reads: Sequence[Tensor] = (),
    writes: Sequence[Tensor],
    warps: int = 4,
    **constants: Any,
) -> None:
    """Launch a kernel, named as `module.function` in this package, with a number of programs.

    `reads` are the tensors that it only reads, `writes` those that it changes. On meta tensors
    nothing runs; an operation of the kernel's name tells whoever watches which tensors it moves.
    A dtype among the constants is passed as Triton's.
    """
    if not programs:
        return
    if writes[0].is_meta:
        _operation(kernel.replace(".", "_"))([*reads], [*writes])
        return
    module, _, function = kernel.partition(".")
    compiled = getattr(import_module(f"{__package__}.{module}"), function)
    language = import_module("triton.language")
    for name, value in constants.items():
        if isinstance(value, torch.dtype):
            constants[name] = getattr(language, str(value).removeprefix("torch."))
    # Without a choice Triton 3.9 warns that its default will change.
    compiled[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=True)


@functools.cache
def _operation(name: str) -> Any:
    """Return an operation that does nothing, on meta tensors."""
    qualified = f"optprof::{name}"
    torch.library.define(qualified, "(Tensor[] read, Tensor(a!)[] written) -> ()")
    torch.library.impl(qualified, "Meta", lambda read, written: None)  # noqa: ARG005
    return getattr(torch.ops.optprof, name)
