"""Answers for values of device tensors that a program reads on the host.

Known values are returned. In an optimizer's step, samples give the others; elsewhere a read of an
unknown value is refused, with the line that reads it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from .samples import EndlessError, Samples
from .untraceable import checked_argument, refusal, running_line
from .values import value_of

_ITEM = torch.ops.aten._local_scalar_dense.default
_COPY = torch.ops.aten._to_copy.default
_WRITE = torch.ops.aten.copy_.default
READS = frozenset((_ITEM, _COPY, _WRITE))
"""The operations that may read a value."""
# The most sampled elements that are copied to the host; larger tensors would fill its memory.
_LARGEST_COPY = 1 << 22


class HostReads:
    """Answers the reads of a traced program.

    `running` names what is running if no line of the program is.
    """

    def __init__(self, samples: Samples | None, running: Callable[[], str]) -> None:
        self._samples, self._running = samples, running

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of one of READS, NotImplemented if it copies nothing to the host."""
        if func is _ITEM:
            return self._item(args[0])
        if func is _COPY and args[0].is_meta and is_host(kwargs.get("device")):
            return self._copy(args[0], kwargs)
        if func is _WRITE and args[1].is_meta and not args[0].is_meta:
            return args[0].copy_(self._copy(args[1], {}))
        return NotImplemented

    def _item(self, tensor: torch.Tensor) -> Any:
        value = value_of(tensor)
        if value is not None:
            return value.item()
        if tensor.dtype == torch.bool and (checked := checked_argument()) is not None:
            return checked
        if self._samples is None:
            raise refusal("reads a tensor's value back from the device", otherwise=self._running())
        return self._sampled(tensor, self._samples).item()

    def _copy(self, tensor: torch.Tensor, kwargs: Any) -> torch.Tensor:
        """Return a copy of a device tensor on the host."""
        value = value_of(tensor)
        if value is None:
            if self._samples is None or tensor.numel() > _LARGEST_COPY:
                raise refusal("copies a tensor's values to the host", otherwise=self._running())
            value = self._sampled(tensor, self._samples)
        return value.to(dtype=kwargs.get("dtype") or value.dtype, copy=True)

    def _sampled(self, tensor: torch.Tensor, samples: Samples) -> torch.Tensor:
        try:
            return samples.copy(tensor, reading_line)
        except EndlessError:
            raise refusal("reads back too many values in one step") from None


def reading_line() -> str:
    """Return the line of the program that reads a value, as "adam.py, line 12,"."""
    return running_line() or "the program"


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside, `torch.tensor` and `tensor.type` work on meta tensors as on CUDA.

    `torch.tensor` copies from the host, since no dispatch mode sees a meta tensor that it makes
    itself. `tensor.type` takes the type names that it returns.
    """
    make, cast = torch.tensor, torch.Tensor.type

    def copied(
        *args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        is_meta = device is not None and torch.device(device).type == "meta"
        tensor = make(*args, device="cpu" if is_meta else device, **kwargs)
        return (tensor.to("meta") if is_meta else tensor).requires_grad_(requires_grad)

    def typed(tensor: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(dtype, str) and dtype.startswith("torch.meta."):
            dtype = getattr(torch, dtype.removeprefix("torch.meta.")).dtype
        return cast(tensor, dtype, *args, **kwargs)

    with mock.patch.object(torch, "tensor", copied), mock.patch.object(torch.Tensor, "type", typed):
        yield


def is_host(device: Any) -> bool:
    """Return whether a device is the CPU."""
    return device is not None and torch.device(device).type == "cpu"
