"""The kernels of an optimizer's step, with the bytes that each must move, from its own code run on
meta tensors.

An operation reads each tensor that it is given once and writes each that it makes or changes once.
A view moves nothing, memory that is only taken neither, and what lives on the host does not count.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..training.state import state_tensors
from .kernels import fused_on_meta
from .metacache import MetaCache
from .multi_tensor import launches
from .samples import ReadBackError, Samples

_READ_BACK = torch.ops.aten._local_scalar_dense.default
# They take memory and leave it as it is.
_NOT_RUN = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "set_",
    "lift",
    "lift_fresh",
}
# They write what they change without reading it.
_OVERWRITING = {
    "copy_",
    "_foreach_copy_",
    "zero_",
    "_foreach_zero_",
    "fill_",
    "normal_",
    "uniform_",
    "bernoulli_",
    "exponential_",
    "random_",
}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One operation on the device: its launches, the bytes that it reads and writes, and the
    arithmetic of a matrix product in `dtype`.

    `waits` marks a number that is read back: the host stands still until the device has come to it.
    """

    name: str
    launches: int = 1
    bytes: int = 0
    flops: int = 0
    dtype: torch.dtype = torch.float32
    waits: bool = False


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """The kernels of one step in order, and the bytes that no step could do without.

    `needed_bytes` counts each tensor of parameters, gradients and state that the step reads once
    and each that it writes once, not the temporaries between.
    """

    kernels: list[Kernel]
    needed_bytes: int


_Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def trace_step(tensors: Iterable[tuple[tuple[int, ...], torch.dtype]], make: _Make) -> StepTrace:
    """The second step, when the state is there, of the optimizer that `make` builds over trained
    parameters of these shapes and dtypes.
    """
    tensors = list(tensors)
    try:
        return _trace_step(tensors, make, Samples(None))
    except ReadBackError:
        return _trace_step(tensors, make, Samples())


def _trace_step(
    tensors: list[tuple[tuple[int, ...], torch.dtype]], make: _Make, samples: Samples
) -> StepTrace:
    parameters = [
        torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
        for shape, dtype in tensors
    ]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer = make(parameters)
    recorder = KernelRecorder(samples)
    with fused_on_meta(), recorder:
        optimizer.step()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        recorder.begin(
            [
                *parameters,
                *gradients,
                *(tensor for _, tensor in state_tensors(optimizer, parameters)),
            ]
        )
        optimizer.step()
    return recorder.found()


class KernelRecorder(TorchDispatchMode):
    """Records what runs on meta tensors as kernels, from its beginning; samples answer for numbers
    that are read back.
    """

    def __init__(self, samples: Samples | None = None) -> None:
        super().__init__()
        self._cache = MetaCache()
        self._samples = samples or Samples()
        self._begun = False
        self._kernels: list[Kernel] = []

    def begin(self, lasting: Iterable[torch.Tensor]) -> None:
        """Record from here on; `lasting` are the tensors whose bytes a step cannot do without."""
        self._begun = True
        self._kernels.clear()
        storages = (tensor.untyped_storage() for tensor in lasting if tensor.is_meta)
        self._lasting = {storage._cdata: storage.nbytes() for storage in storages}
        self._read: Counter[int] = Counter()
        self._written: Counter[int] = Counter()

    def found(self) -> StepTrace:
        """What was recorded since the beginning."""
        needed = (
            min(count, self._lasting[storage])
            for moved in (self._read, self._written)
            for storage, count in moved.items()
        )
        return StepTrace(kernels=self._kernels, needed_bytes=sum(needed))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func is _READ_BACK and args[0].is_meta:
            self._kernels.append(
                Kernel(name="_local_scalar_dense", bytes=args[0].element_size(), waits=True)
            )
            return self._samples.read(args[0], str)
        result = self._cache.run(func, args, kwargs)
        self._samples.note(
            func,
            args,
            kwargs,
            [result] if isinstance(result, torch.Tensor) else tree_leaves(result),
        )
        operation = _operation(func)
        if operation.runs and self._begun:
            self._record(operation, args, kwargs, result)
        return result

    def _record(self, operation: "_Operation", args: Any, kwargs: Any, result: Any) -> None:
        read, written = operation.operands(args, kwargs)
        made = [] if written else _made(result, read)
        if not made and not written:
            return
        count = operation.flops
        self._kernels.append(
            Kernel(
                name=operation.name,
                launches=operation.launches(args, made) if operation.is_multi_tensor else 1,
                bytes=self._move(read, self._read) + self._move(written + made, self._written),
                flops=count(*args, **kwargs, out_val=result) if count else 0,
                dtype=made[0].dtype if made else written[0].dtype,
            )
        )

    def _move(self, tensors: list[torch.Tensor], moved: Counter[int]) -> int:
        """Bytes of the tensors, those that look at the same elements counted once; told to `moved`
        where they outlast the step.
        """
        total = 0
        for tensor, storage in _once(tensors):
            count = _footprint(tensor)
            total += count
            if storage in self._lasting:
                moved[storage] += count
        return total


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """What an operation's schema says once for all its calls: which arguments it reads and
    writes.
    """

    name: str
    runs: bool
    has_scalars: bool
    flops: Any
    arguments: list[tuple[int, str, bool, bool]]

    @property
    def is_multi_tensor(self) -> bool:
        """Whether it takes lists of tensors, many of them in one launch."""
        return self.name.startswith(("_foreach_", "_fused_"))

    def operands(self, args: Any, kwargs: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The tensors on the device that a call reads, and those of its arguments that it
        writes.
        """
        read: list[torch.Tensor] = []
        written: list[torch.Tensor] = []
        for place, name, reads, writes in self.arguments:
            tensors = _on_device(args[place] if place < len(args) else kwargs.get(name))
            # A fused kernel changes the gradients only where it unscales them.
            unscaled = name == "grads" and kwargs.get("grad_scale") is None
            written += tensors if writes and not unscaled else []
            read += tensors if reads else []
        return read, written

    def launches(self, args: Any, made: list[torch.Tensor]) -> int:
        """Launches of a call of a multi-tensor operation, which walks its lists, and one that it
        makes, side by side.
        """
        lists = [
            tensors
            for argument in args
            if isinstance(argument, list | tuple) and (tensors := _on_device(argument))
        ]
        # Step counts lie beside the lists of a fused kernel, not among them.
        walked = len(lists) - self.name.startswith("_fused_ada")
        return launches(
            (tensor.numel() for tensor in lists[0]),
            lists=walked + bool(made),
            scalars=self.has_scalars,
        )


@cache
def _operation(func: Any) -> _Operation:
    schema = func._schema
    name = schema.name.removeprefix("aten::")
    return _Operation(
        name=name,
        runs=func.namespace == "aten"
        and name not in _NOT_RUN
        and torch.Tag.inplace_view not in func.tags,
        has_scalars="ScalarList" in func._overloadname,
        flops=flop_registry.get(func._overloadpacket),
        arguments=[
            _argument(name, place, argument)
            for place, argument in enumerate(schema.arguments)
            if "Tensor" in str(argument.type)
        ],
    )


def _argument(name: str, place: int, argument: Any) -> tuple[int, str, bool, bool]:
    """An argument's place and name, and whether its tensors are read and written."""
    writes = argument.alias_info is not None and argument.alias_info.is_write
    overwritten = writes and (argument.kwarg_only or name in _OVERWRITING)
    # What is made like another tensor asks for its shape alone.
    only_shape = place == 0 and (name.endswith("_like") or name.startswith("new_"))
    return place, argument.name, not overwritten and not only_shape, writes


def _made(result: Any, operands: list[torch.Tensor]) -> list[torch.Tensor]:
    """The outputs with memory of their own; one that shares an operand's is a view of it."""
    known = {tensor.untyped_storage()._cdata for tensor in operands}
    return [tensor for tensor in _on_device(result) if tensor.untyped_storage()._cdata not in known]


def _on_device(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.is_meta else []
    if value is None:
        return []
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.is_meta]


def _once(tensors: list[torch.Tensor]) -> Iterable[tuple[torch.Tensor, int]]:
    """The tensors, each with its storage, without those that look at the same elements as
    another.
    """
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    pairs = list(zip(tensors, storages, strict=True))
    if len(set(storages)) == len(storages):
        return pairs
    return {
        (storage, tensor.storage_offset(), tensor.shape, tensor.stride()): (tensor, storage)
        for tensor, storage in pairs
    }.values()


def _footprint(tensor: torch.Tensor) -> int:
    """Bytes of the elements that the tensor looks at; along an expanded axis there is one."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count
