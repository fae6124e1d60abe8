"""The kernels of an optimizer's step and the bytes that each must move.

The optimizer's own code runs on meta tensors. An operation reads each tensor argument once, and
writes each tensor that it makes or changes once. Views and allocations move nothing, and host
tensors do not count.
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
from .samples import ReadBackError, Samples

_READ_BACK = torch.ops.aten._local_scalar_dense.default
# They allocate memory and do not write it.
_NOT_RUN = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_",
    "lift", "lift_fresh",
}  # fmt: skip
# They overwrite a tensor without reading it.
_OVERWRITING = {
    "copy_", "_foreach_copy_", "zero_", "_foreach_zero_", "fill_", "normal_", "uniform_",
    "bernoulli_", "exponential_", "random_",
}  # fmt: skip


# ATen/native/cuda/MultiTensorApply.cuh in torch 2.13 built for CUDA 13: the limits of one launch.
# Builds for CUDA 12 and for ROCm take a seventh of the tensors and of the blocks, so they launch up
# to seven times as often.
_CHUNK_ELEMENTS = 65_536
_MOST_BLOCKS = 2_240
# By the number of lists that the kernel walks, from one to five.
_MOST_TENSORS = (770, 448, 336, 252, 210)
_MOST_TENSORS_WITH_SCALARS = (672, 448, 336, 252, 210)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One operation on the device: its launches and the bytes that it reads and writes.

    `flops` is the arithmetic of a matrix product in `dtype`. `waits` marks a value that is read
    back: the host waits until the device has computed it.
    """

    name: str
    launches: int = 1
    bytes: int = 0
    flops: int = 0
    dtype: torch.dtype = torch.float32
    waits: bool = False


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """The kernels of one step in order, and the bytes that every implementation must move.

    `needed_bytes` counts each parameter, gradient and state tensor once if the step reads it and
    once if the step writes it; temporaries do not count.
    """

    kernels: list[Kernel]
    needed_bytes: int


_Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def trace_step(tensors: Iterable[tuple[tuple[int, ...], torch.dtype]], make: _Make) -> StepTrace:
    """Return the second step of the optimizer that `make` builds, when the state exists.

    Its parameters have these shapes and dtypes.
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
    return recorder.trace()


class KernelRecorder(TorchDispatchMode):
    """Records operations on meta tensors as kernels after `begin`; samples answer read-backs."""

    def __init__(self, samples: Samples | None = None) -> None:
        super().__init__()
        self._cache = MetaCache()
        self._samples = samples or Samples()
        self._begun = False
        self._kernels: list[Kernel] = []

    def begin(self, lasting: Iterable[torch.Tensor]) -> None:
        """Record from here on; `lasting` are the tensors that `needed_bytes` counts."""
        self._begun = True
        self._kernels.clear()
        storages = (tensor.untyped_storage() for tensor in lasting if tensor.is_meta)
        self._lasting = {storage._cdata: storage.nbytes() for storage in storages}
        self._read: Counter[int] = Counter()
        self._written: Counter[int] = Counter()

    def trace(self) -> StepTrace:
        """Return the kernels since `begin`."""
        needed = (
            min(count, self._lasting[storage])
            for moved in (self._read, self._written)
            for storage, count in moved.items()
        )
        return StepTrace(kernels=self._kernels, needed_bytes=sum(needed))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing compiled runs inside, and torch's guard would double the time of an operation.
        return False

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
        """Return the bytes of the tensors, views of the same elements counted once.

        Those of lasting tensors are added to `moved`.
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
    """The properties of an operation that all its calls share, from its schema.

    `arguments` has the place and name of each tensor argument, and if it is read and written.
    """

    name: str
    runs: bool
    has_scalars: bool
    flops: Any
    arguments: list[tuple[int, str, bool, bool]]

    @property
    def is_multi_tensor(self) -> bool:
        """True if it takes lists of tensors, many of them in one launch."""
        return self.name.startswith(("_foreach_", "_fused_"))

    def operands(self, args: Any, kwargs: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the device tensors that a call reads, and its arguments that it writes."""
        read: list[torch.Tensor] = []
        written: list[torch.Tensor] = []
        for place, name, reads, writes in self.arguments:
            tensors = _on_device(args[place] if place < len(args) else kwargs.get(name))
            # A fused kernel changes the gradients only if it unscales them.
            unscaled = name == "grads" and kwargs.get("grad_scale") is None
            written += tensors if writes and not unscaled else []
            read += tensors if reads else []
        return read, written

    def launches(self, args: Any, made: list[torch.Tensor]) -> int:
        """Return the launches of a multi-tensor call, which walks its lists and outputs at once."""
        lists = [
            tensors
            for argument in args
            if isinstance(argument, list | tuple) and (tensors := _on_device(argument))
        ]
        # Step counts of a fused kernel are not among the lists that it walks.
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
        runs=func.namespace in ("aten", "optprof")
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
    """Return an argument's place and name, and if its tensors are read and written."""
    writes = argument.alias_info is not None and argument.alias_info.is_write
    overwritten = writes and (argument.kwarg_only or name in _OVERWRITING)
    # A tensor made like another one needs only its shape.
    only_shape = place == 0 and (name.endswith("_like") or name.startswith("new_"))
    return place, argument.name, not overwritten and not only_shape, writes


def _made(result: Any, operands: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the outputs that are no views of an operand."""
    storages = {tensor.untyped_storage()._cdata for tensor in operands}
    return [
        tensor for tensor in _on_device(result) if tensor.untyped_storage()._cdata not in storages
    ]


def _on_device(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.is_meta else []
    if value is None:
        return []
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.is_meta]


def _once(tensors: list[torch.Tensor]) -> Iterable[tuple[torch.Tensor, int]]:
    """Return the tensors, each with its storage, without views of the same elements."""
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    pairs = list(zip(tensors, storages, strict=True))
    if len(set(storages)) == len(storages):
        return pairs
    return {
        (storage, tensor.storage_offset(), tensor.shape, tensor.stride()): (tensor, storage)
        for tensor, storage in pairs
    }.values()


def _footprint(tensor: torch.Tensor) -> int:
    """Bytes of the elements that the tensor views; an expanded axis has one."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def launches(sizes: Iterable[int], *, lists: int, scalars: bool = False) -> int:
    """Return the launches over tensors with these numbers of elements, `lists` lists at once.

    With `scalars` the kernel takes a number for each tensor.
    """
    most_tensors = (_MOST_TENSORS_WITH_SCALARS if scalars else _MOST_TENSORS)[
        min(lists, len(_MOST_TENSORS)) - 1
    ]
    count = tensors = blocks = 0
    for size in sizes:
        if not size:
            continue
        tensors += 1
        filled, blocks = divmod(blocks + -(-size // _CHUNK_ELEMENTS), _MOST_BLOCKS)
        if filled:
            # The next launch begins with the rest of this tensor.
            count, tensors = count + filled, min(blocks, 1)
        if tensors == most_tensors:
            count, tensors, blocks = count + 1, 0, 0
    return count + (blocks > 0)
