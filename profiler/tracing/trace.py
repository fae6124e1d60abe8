"""What a program would allocate on a device, recorded from meta tensors: a stream of alloc and free events.

Every operation runs on tensors that have shapes but no data, at full size. A storage that appears is an allocation; the moment when Python
and autograd drop the last reference to it is its free, in the order in which a real run would free it.
"""

import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .composed import PARTS
from .in_place import InPlace
from .kernel_memory import KERNELS, TAKING, WORKSPACE
from .matrix_products import PRODUCTS
from .metacache import MetaCache
from .requests import USUAL_DEVICE, Request
from .samples import EndlessError, Samples
from .sources import Source, Sources
from .values import SIZED_BY_VALUES, UnknownError, compute_values, has_values, run_on_values, value_of

Phase = Literal["build", "forward", "backward", "clip", "step", "zero_grad"]
Category = Literal["parameter", "buffer", "gradient", "optimizer_state", "activation", "temporary", "workspace", "input"]

_READ_BACK = torch.ops.aten._local_scalar_dense.default
_COPY = torch.ops.aten._to_copy.default
_WRITE = torch.ops.aten.copy_.default
_NONZERO = torch.ops.aten.nonzero.default
# Elements of a tensor whose sampled values are put on the host; larger ones would take its memory.
_LARGEST_COPY = 1 << 22
_INDEXING = frozenset(map(id, (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)))
# The random seed and offset that these operations return live on the host, unless a CUDA graph is being captured.
_HOST_OUTPUTS = {id(torch.ops.aten._scaled_dot_product_efficient_attention.default): (2, 3)}


_ADVICE = "a simulation does not have the values; use --device cpu or cuda"


class UntraceableError(ValueError):
    """The program needs the values of device tensors, which a trace does not have."""


@dataclass(frozen=True)
class Segment:
    """The events of one phase, in order: n >= 0 allocates number n, ~n frees it."""

    phase: Phase
    events: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Allocations:
    """Allocations by number: bytes as requested, what they were for, and who asked for them.

    `requests` are those of kernels, whose bytes depend on the GPU: `nbytes` has them as on the usual one.
    """

    nbytes: list[int] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    requests: dict[int, Request] = field(default_factory=dict)

    def __add__(self, other: "Allocations") -> "Allocations":
        first = len(self.nbytes)
        requests = self.requests | {first + number: request for number, request in other.requests.items()}
        return Allocations(self.nbytes + other.nbytes, self.categories + other.categories, self.sources + other.sources, requests)


class Recorder(TorchDispatchMode):
    """Records the allocations of everything that runs inside its phases.

    `model` gives the names of modules, parameters and buffers; `first` is the number of the first allocation, so that a second recording
    can go on where another ended.
    `samples` answer for `.item()` on a device tensor, instead of raising UntraceableError; no values are followed then.
    `workspaces`, the threads ("main", "autograd") that have one for cuBLAS already, asks for what CUDA's kernels take for themselves;
    without it there are the operations' outputs alone.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        *,
        first: int = 0,
        samples: Samples | None = None,
        workspaces: Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        self.allocations = Allocations()
        self.segments: list[Segment] = []
        self._cache = MetaCache()
        self._in_place = InPlace()
        self._sources = Sources(model)
        self._first = first
        self._samples = samples
        self.workspaces = None if workspaces is None else set(workspaces)
        self._events: list[int] | None = None
        self._category: Category = "temporary"
        self._numbers: dict[int, int] = {}
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._empty: set[int] = set()

    @contextmanager
    def phase(self, phase: Phase, category: Category = "temporary") -> Iterator[None]:
        """Record what runs inside as one segment; its allocations are of `category` until something names them better."""
        segment = Segment(phase)
        self.segments.append(segment)
        self._events, self._category = segment.events, category
        # Two frames up is the function whose `with` this is.
        outermost = sys._getframe(2).f_code
        try:
            with self._sources.followed(outermost), self._in_place.followed(), _as_on_cuda(self._samples), self:
                yield
        finally:
            self._events = None
        self._name_short_lived(segment)

    def number(self, tensor: torch.Tensor) -> int:
        """The number of the allocation that holds the tensor; KeyError for one that was never seen."""
        return self._numbers[tensor.untyped_storage()._cdata]

    def allocate(self, tensor: torch.Tensor, category: Category) -> int:
        """Record a tensor that exists already as an allocation of the current phase; its number."""
        self._see(tensor, self._sources.holding(tensor))
        number = self.number(tensor)
        self.name(number, category)
        return number

    def adopt(self, tensor: torch.Tensor, number: int) -> None:
        """Know a tensor whose allocation another recording holds under `number`; only its free is recorded here."""
        self._follow(tensor.untyped_storage(), number)

    def name(self, number: int, category: Category, owner: str = "") -> None:
        """Say what an allocation was for, and the path of what in the model it belongs to, if there is one."""
        place = number - self._first
        if place >= 0:
            self.allocations.categories[place] = category
            if owner:
                self.allocations.sources[place] = self.allocations.sources[place]._replace(module=owner)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor lives on the recorded device; host tensors do not."""
        return tensor.untyped_storage()._cdata in self._numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func is _READ_BACK:
            return self._read_back(args[0])
        if func is _COPY and args[0].is_meta and _is_host(kwargs.get("device")):
            return self._copy_back(args[0], kwargs)
        if func is _WRITE and args[1].is_meta and not args[0].is_meta:
            return args[0].copy_(self._copy_back(args[1], {}))
        func, args, result = self._operate(func, args, kwargs)
        seen = len(self._events or ())
        outputs = [result] if isinstance(result, torch.Tensor) else tree_leaves(result)
        on_host = _HOST_OUTPUTS.get(id(func), ())
        for place, output in enumerate(outputs):
            if isinstance(output, torch.Tensor) and output.device.type == "meta" and place not in on_host:
                self._see(output, func)
        if self._samples is not None:
            if id(func) not in PARTS:
                self._samples.note(func, args, kwargs, outputs)
        elif has_values(func, args, outputs):
            compute_values(func, args, kwargs, outputs)
        if self.workspaces is not None and id(func) in TAKING and self._events is not None:
            self._run_kernel(func, args, kwargs, result, self._events, seen, self.workspaces)
        return result

    def _operate(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """Run the operation, in place where autograd would; return what ran, its arguments and its result."""
        written = self._in_place.instead_of(func, args)
        func, args = written or (func, args)
        if id(func) in _INDEXING and not _fills(args):
            # They are held until the operation's outputs are there, as the caller of this holds its arguments.
            args = (args[0], self._without_masks(args[1]), *args[2:])
        result = self._run(func, args, kwargs)
        self._in_place.note(func, result)
        return func, args, result if written is None else args[0].detach()

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what the operation makes: on meta tensors the layouts are looked up."""
        if id(func) in SIZED_BY_VALUES and args[0].is_meta:
            try:
                return run_on_values(func, args, kwargs)
            except UnknownError:
                if self._samples is not None and func is _NONZERO:
                    count = self._samples.true_count(args[0], _caller)
                    return torch.empty((count, args[0].dim()), dtype=torch.int64, device="meta")
                raise UntraceableError(f"{_caller()} makes a tensor whose size depends on values; {_ADVICE}") from None
        parts = PARTS.get(id(func))
        if parts is not None:
            with self:
                return parts(*args, **kwargs)
        return self._cache.run(func, args, kwargs)

    def _without_masks(self, indices: Any) -> Any:
        """Return the indices with each mask as the places where it is true: expandTensors in ATen/native/IndexingUtils.h."""
        if not any(isinstance(index, torch.Tensor) and index.is_meta and index.dtype == torch.bool for index in indices):
            return indices
        found = []
        with self:
            for index in indices:
                is_mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool
                found += index.nonzero().unbind(1) if is_mask else [index]
        return found

    def _run_kernel(self, func: Any, args: Any, kwargs: Any, result: Any, events: list[int], seen: int, workspaces: set[str]) -> None:
        """Record what the operation's kernel requests; its outputs are the events from `seen` on."""
        if func in PRODUCTS:
            self._take_workspace(func, events, workspaces)
        requests, nbytes = KERNELS[func].requests(result, args, kwargs)
        if requests:
            outputs = events[seen:]
            first = self._first + len(self.allocations.nbytes)
            self._add(requests, nbytes, "temporary", self._sources.of(func))
            events[seen:] = KERNELS[func].events(outputs, range(first, first + len(requests)))

    def _take_workspace(self, func: Any, events: list[int], workspaces: set[str]) -> None:
        """Record cuBLAS's workspace where this thread has none yet."""
        # Autograd runs the backward pass in a thread of its own for the device, and each thread has its own handle of cuBLAS.
        thread = "autograd" if self.segments[-1].phase == "backward" else "main"
        if thread not in workspaces:
            workspaces.add(thread)
            events.append(self._first + len(self.allocations.nbytes))
            self._add([WORKSPACE], [WORKSPACE.nbytes(USUAL_DEVICE)], "workspace", self._sources.of(func))

    def _add(self, requests: Sequence[Request], nbytes: Sequence[int], category: Category, source: Source) -> None:
        """Number the requests of a kernel."""
        self.allocations.requests.update(enumerate(requests, len(self.allocations.nbytes)))
        self.allocations.nbytes.extend(nbytes)
        self.allocations.categories.extend(category for _ in nbytes)
        self.allocations.sources.extend([source] * len(nbytes))

    def _request(self, nbytes: int, category: Category, source: Any) -> int:
        """Number a new allocation; `source` is the operation that asks for it, or a Source."""
        allocations = self.allocations
        number = self._first + len(allocations.nbytes)
        allocations.nbytes.append(nbytes)
        allocations.categories.append(category)
        allocations.sources.append(source if isinstance(source, Source) else self._sources.of(source))
        # A request for nothing never reaches the allocator.
        if nbytes and self._events is not None:
            self._events.append(number)
        return number

    def _see(self, tensor: torch.Tensor, source: Any) -> None:
        """Number the tensor's storage where it is new; `source` is the operation that made it, or a Source."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if self._events is None or (key in self._numbers and (key not in self._empty or not storage.nbytes())):
            return
        self._follow(storage, self._request(storage.nbytes(), self._category, source))

    def _name_short_lived(self, segment: Segment) -> None:
        """An activation is kept for the backward pass; what the forward pass frees itself was temporary."""
        freed = {~event for event in segment.events if event < 0}
        for number in freed.intersection(segment.events):
            if self.allocations.categories[number - self._first] == "activation":
                self.name(number, "temporary")

    def _follow(self, storage: torch.UntypedStorage, number: int) -> None:
        key, holds_bytes = storage._cdata, storage.nbytes() > 0
        # What has no bytes yet may be given some, by an operation that fills it.
        (self._empty.discard if holds_bytes else self._empty.add)(key)

        def freed(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._numbers[key], self._storages[key]
            self._empty.discard(key)
            if holds_bytes and self._events is not None:
                self._events.append(~number)

        self._numbers[key] = number
        self._storages[key] = weakref.ref(storage, freed)

    def _read_back(self, tensor: torch.Tensor) -> Any:
        value = value_of(tensor)
        if value is not None:
            return value.item()
        if self._samples is None:
            raise UntraceableError(f"{_caller()} reads a tensor's value back from the device; {_ADVICE}")
        return self._sampled(tensor).item()

    def _copy_back(self, tensor: torch.Tensor, kwargs: Any) -> torch.Tensor:
        """Return a tensor on the host."""
        value = value_of(tensor)
        if value is None:
            if self._samples is None or tensor.numel() > _LARGEST_COPY:
                raise UntraceableError(f"{_caller()} copies a tensor's values to the host; {_ADVICE}")
            value = self._sampled(tensor)
        return value.to(dtype=kwargs.get("dtype") or value.dtype, copy=True)

    def _sampled(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self._samples is not None
        try:
            return self._samples.copy(tensor, _caller)
        except EndlessError:
            raise UntraceableError(f"{_caller()} reads values back again and again; {_ADVICE}") from None


@contextmanager
def _as_on_cuda(samples: Samples | None) -> Iterator[None]:
    """Inside, an optimizer's code finds two functions as they are on CUDA.

    `torch.tensor` copies to the device what it makes; of a meta tensor that it makes itself no
    dispatch mode hears. `tensor.type` takes the name of a type that it has given.
    """
    if samples is None:
        yield
        return
    make, cast = torch.tensor, torch.Tensor.type

    def made(*args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> torch.Tensor:
        is_meta = device is not None and torch.device(device).type == "meta"
        tensor = make(*args, device="cpu" if is_meta else device, **kwargs)
        return (tensor.to("meta") if is_meta else tensor).requires_grad_(requires_grad)

    def typed(tensor: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(dtype, str) and dtype.startswith("torch.meta."):
            dtype = getattr(torch, dtype.removeprefix("torch.meta.")).dtype
        return cast(tensor, dtype, *args, **kwargs)

    with mock.patch.object(torch, "tensor", made), mock.patch.object(torch.Tensor, "type", typed):
        yield


def _is_host(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _fills(args: Any) -> bool:
    """Return whether values are written where a mask is set without the places' being needed.

    One number is, by canDispatchToMaskedFill in ATen/native/TensorAdvancedIndexing.cpp. Of others the
    trace does not know the places; how many there are follows from the values (masks.py).
    """
    if len(args) < 3:
        return False
    accumulates = len(args) > 3 and args[3]
    is_one = args[2].numel() == 1 and not accumulates
    return is_one or any(isinstance(index, torch.Tensor) and index.dtype == torch.bool and value_of(index) is None for index in args[1])


_TRACING = str(Path(__file__).parent)
_PROFILER = str(Path(__file__).parent.parent)
_TORCH = str(Path(torch.__file__).parent)
_TORCH_OPTIM = str(Path(torch.__file__).parent / "optim")


def _caller() -> str:
    """The innermost line of code outside of torch and of this package, or in torch's optimizers, as `file.py, line 12,`."""
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_PROFILER, _TORCH)):
            found = frame
            break
        if name.startswith(_PROFILER) and not name.startswith(_TRACING):
            # Further out is who asked for the trace.
            break
        found = found or (frame if name.startswith(_TORCH_OPTIM) else None)
        frame = frame.f_back
    return f"{found.f_code.co_filename}, line {found.f_lineno}," if found else "the program"
