"""Record what a program would allocate on a device: a stream of alloc and free events.

Every operation runs at full size on meta tensors, which have shapes but no data. A new storage is
an allocation. Its free is the moment when Python and autograd drop the last reference to it, as in
a real run.
"""

import sys
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import compiled
from .collectives import COLLECTIVES, collective, tensors_in
from .composed import PARTS
from .host_reads import READS, HostReads, as_on_cuda, is_host, reading_line
from .in_place import InPlace
from .kernel_memory import KERNEL_MEMORY
from .layouts import data_of, is_sparse
from .matrix_products import PRODUCTS, WORKSPACE
from .metacache import Layout, MetaCache, fresh_layout, is_fresh, made_as
from .recurrent import SPACE
from .requests import USUAL_DEVICE, KernelMemory, Request, between
from .samples import Samples
from .sources import Source, Sources
from .sparse import MAKING, PLAIN, RUN
from .stream import Allocations, Category, Phase, Segment
from .untraceable import REGISTER, refusal, require_followed, translated
from .values import (
    SIZED_BY_VALUES,
    UnknownError,
    compute_values,
    entries_of,
    has_values,
    host_values,
    remember_entries,
    run_on_values,
    value_of,
)

_NONZERO = torch.ops.aten.nonzero.default
_INDEXING = {
    id(torch.ops.aten.index.Tensor),
    id(torch.ops.aten.index_put.default),
    id(torch.ops.aten.index_put_.default),
}
_RESIZE, _TO_COPY = torch.ops.aten.resize_.default, torch.ops.aten._to_copy.default
# Places of outputs that live on the host: the random seed and offset, outside of CUDA graphs.
_HOST_OUTPUTS = {id(torch.ops.aten._scaled_dot_product_efficient_attention.default): (2, 3)}


_Result = TypeVar("_Result", None, torch.Tensor, dict[str, torch.Tensor])


class _Part(NamedTuple):
    """The recorded events of a part of a program, from allocation `first` on.

    `kept` has the numbers and layouts of the tensors that it returned, by name if they are a dict.
    """

    first: int
    events: list[int]
    allocations: Allocations
    kept: dict[str, tuple[int, Layout]]
    is_dict: bool


class Recorder(TorchDispatchMode):
    """Records the allocations of everything that runs inside its phases.

    `model` gives the names of modules, parameters and buffers. `first` is the number of the first
    allocation, so that a recording can continue another one. With `samples`, values of device
    tensors are read from them instead of raising UntraceableError, and no values are followed.
    With `workspaces`, the threads ("main", "autograd") that already have a cuBLAS workspace, the
    memory that CUDA's kernels take for themselves is recorded too; without it only the outputs of
    operations are.

    `stream` is the number of the current CUDA stream.
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
        self.stream = 0
        # Storages of the host, which operations see on the meta device.
        self._host: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.segments: list[Segment] = []
        self._cache = MetaCache()
        self._in_place = InPlace()
        self._sources = Sources()
        self.allocations = Allocations(classes=self._sources.classes)
        self._first = first
        self._samples = samples
        self._host_reads = HostReads(samples, self._sources.running)
        self.workspaces = None if workspaces is None else set(workspaces)
        self._events: list[int] | None = None
        self._category: Category = "temporary"
        self._numbers: dict[int, int] = {}
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._empty: set[int] = set()
        self._is_sparse = False
        self._repeats: dict[Hashable, _Part] = {}
        if model is not None:
            self.know(model)

    def know(self, model: torch.nn.Module) -> None:
        """Take the names of a model's modules, parameters and buffers for the sources."""
        self._sources.know(model)

    @contextmanager
    def phase(self, phase: Phase, category: Category = "temporary") -> Iterator[None]:
        """Record what runs inside as one segment.

        Its allocations have this category until `name` gives them another.
        """
        segment = Segment(phase)
        self.segments.append(segment)
        self._events, self._category = segment.events, category
        # Two frames up is the function that contains the `with` statement.
        outermost = sys._getframe(2).f_code
        try:
            with (
                compiled.refused(),
                self._sources.followed(outermost),
                self._in_place.followed(),
                host_values(),
                as_on_cuda() if self._samples is not None else nullcontext(),
                self,
            ):
                yield
        except Exception as error:
            untraceable = translated(error)
            if untraceable is None or untraceable is error:
                raise
            raise untraceable from error
        finally:
            self._events = None
        self._name_short_lived(segment)

    def number(self, tensor: torch.Tensor) -> int:
        """Return the number of the allocation with the tensor's data, or a sparse tensor's values.

        Raise KeyError for a tensor that was never recorded.
        """
        return self._numbers[data_of(tensor)[-1].untyped_storage()._cdata]

    def allocate(self, tensor: torch.Tensor, category: Category) -> int:
        """Record an existing tensor as an allocation of the current phase; return its number."""
        source = self._sources.holding(tensor)
        require_followed(tensor, source.module)
        self._see(tensor, source)
        for part in data_of(tensor):
            self.name(self.number(part), category)
        return self.number(tensor)

    def adopt(self, tensor: torch.Tensor, number: int, *, freed: bool = True) -> None:
        """Take over a tensor that another recording allocated as `number`.

        Its free is recorded here if `freed`.
        """
        self._follow(tensor.untyped_storage(), number, freed=freed)

    def repeat(self, key: Hashable, run: Callable[[], _Result]) -> _Result:
        """Run a part of the program, or record again what an equal `key` has recorded.

        Return what the part returns: None, a tensor or a dict of tensors. It has the same events if
        it frees no memory of before, and all of its own except that of the tensors it returns.
        """
        if key in self._repeats:
            return self._record_again(self._repeats[key])
        allocations, events = self.allocations, len(self._events or ())
        first, workspaces = len(allocations.nbytes), set(self.workspaces or ())
        result = run()
        is_sampled = self._samples and self._samples.training is not None
        if self._events is None or self._host or is_sampled:
            return result
        recorded = self._events[events:]
        made = {event for event in recorded if event >= 0}
        kept: dict[str, tuple[int, Layout]] = {}
        for name, tensor in _named(result).items():
            if type(tensor) is not torch.Tensor or not is_fresh(tensor):
                return result
            kept[name] = self.number(tensor), fresh_layout(tensor)
        lasting = {number for number, _ in kept.values()}
        if (
            {~event for event in recorded if event < 0} == made - lasting
            and len(lasting) == len(kept)
            and lasting <= made
            and workspaces == set(self.workspaces or ())
            and min(made, default=self._first + first) >= self._first + first
        ):
            # Copies: the tensors that are kept may get other names later.
            part = Allocations(
                allocations.nbytes[first:],
                allocations.categories[first:],
                allocations.sources[first:],
                {
                    number - first: allocations.requests[number]
                    for number in range(first, len(allocations.nbytes))
                    if number in allocations.requests
                },
            )
            self._repeats[key] = _Part(
                self._first + first, recorded, part, kept, isinstance(result, dict)
            )
        return result

    def _record_again(self, part: "_Part") -> Any:
        allocations, events = self.allocations, self._events
        assert events is not None
        first = len(allocations.nbytes)
        shift = self._first + first - part.first
        events += [event + shift if event >= 0 else event - shift for event in part.events]
        allocations.nbytes.extend(part.allocations.nbytes)
        allocations.categories.extend(part.allocations.categories)
        allocations.sources.extend(part.allocations.sources)
        for number, request in part.allocations.requests.items():
            allocations.requests[first + number] = request
        made: dict[str, torch.Tensor] = {}
        with torch._C._DisableTorchDispatch():
            for name, (number, layout) in part.kept.items():
                made[name] = made_as(layout)
                self._follow(made[name].untyped_storage(), number + shift)
        return made if part.is_dict else made.get("")

    @contextmanager
    def allocating(self, category: Category) -> Iterator[None]:
        """Give this category to what is allocated inside."""
        before, self._category = self._category, category
        try:
            yield
        finally:
            self._category = before

    def resized(self, tensor: torch.Tensor) -> None:
        """Record that code other than an operation has emptied or filled a tensor's storage."""
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self._see(tensor, _RESIZE)
        elif (number := self._numbers.get(storage._cdata)) is not None:
            self._follow(storage, number)
            if self._events is not None:
                self._events.append(~number)

    def expect_sparse(self) -> None:
        """Look for sparse tensors among the arguments of operations, which takes time."""
        self._is_sparse = True

    def name(self, number: int, category: Category, owner: str = "") -> None:
        """Set an allocation's category, and the path of the module that owns it if there is one."""
        index = number - self._first
        if index >= 0:
            self.allocations.categories[index] = category
            if owner:
                source = self.allocations.sources[index]
                self.allocations.sources[index] = source._replace(module=owner)

    def keep_on_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a meta tensor as one of the host, and what is made from such tensors alone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._host[key] = weakref.ref(storage, lambda _: self._host.pop(key))
        return tensor

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether the tensor lives on the recorded device; host tensors do not."""
        return data_of(tensor)[-1].untyped_storage()._cdata in self._numbers

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing compiled runs inside, and torch's guard would double the time of an operation.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(map(_unwraps_itself, types)):
            # The subclass runs the operation on its inner tensors, which come here again.
            return self._run_one_by_one(func, args, kwargs)
        if self._host and (value := self._on_host(func, args, kwargs)) is not NotImplemented:
            return value
        if (
            func in READS
            and (value := self._host_reads.run(func, args, kwargs)) is not NotImplemented
        ):
            return value
        if self._is_sparse and any(map(is_sparse, tree_leaves((args, kwargs)))):
            return self._run_sparse(func, args, kwargs)
        if func is SPACE:
            return self._allocate_range(*args)
        func, args, result = self._operate(func, args, kwargs)
        first_output = len(self._events or ())
        outputs = [result] if isinstance(result, torch.Tensor) else tree_leaves(result)
        on_host = _HOST_OUTPUTS.get(id(func), ())
        for place, output in enumerate(outputs):
            if (
                isinstance(output, torch.Tensor)
                and output.device.type == "meta"
                and place not in on_host
            ):
                self._see(output, func)
        self._note_values(func, args, kwargs, outputs)
        memory = KERNEL_MEMORY.get(id(func))
        if memory is not None and self.workspaces is not None and self._events is not None:
            if func in PRODUCTS:
                self._take_workspace(func, self._events, self.workspaces)
            self._add_requests(memory, func, args, kwargs, result, self._events, first_output)
        return result

    def _run_one_by_one(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a multi-tensor operation of DTensors for one tensor after another.

        Its outputs are the same. For all at once, torch derives their placements in a time that
        grows with the square of their number. Return NotImplemented for other operations, and for
        those whose kernels request memory for all tensors together.
        """
        lists = [arg for arg in args if isinstance(arg, list | tuple)]
        lengths = set(map(len, lists))
        is_multi = func._schema.name.startswith("aten::_foreach_") and id(func) not in KERNEL_MEMORY
        if not is_multi or len(lengths) != 1 or lengths == {1}:
            return NotImplemented
        results = []
        with self:
            for place in range(lengths.pop()):
                one = [[arg[place]] if isinstance(arg, list | tuple) else arg for arg in args]
                results.append(func(*one, **kwargs))
        return [each for (each,) in results] if func._schema.returns else None

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation that copies to the host, or whose meta tensors are all of the host.

        Return NotImplemented for others, and for reads of values.
        """
        if func is _TO_COPY and is_host(kwargs.get("device")):
            return self.keep_on_host(torch.empty_like(args[0], dtype=kwargs.get("dtype")))
        metas = [each for each in tensors_in(args) if each.is_meta]
        if func in READS or not metas:
            return NotImplemented
        if not all(tensor.untyped_storage()._cdata in self._host for tensor in metas):
            return NotImplemented
        result = self._cache.run(func, args, kwargs)
        outputs = tensors_in(result)
        for output in outputs:
            if output.is_meta:
                self.keep_on_host(output)
        self._note_values(func, args, kwargs, outputs)
        return result

    def _note_values(self, func: Any, args: Any, kwargs: Any, outputs: list[Any]) -> None:
        """Keep what is needed to know the values of the outputs later; note a collective."""
        if func.namespace in COLLECTIVES and (call := collective(func, args, outputs)):
            self.segments[-1].collectives.append(call)
        if self._samples is not None:
            if id(func) not in PARTS:
                self._samples.note(func, args, kwargs, outputs)
        elif has_values(func, args, outputs):
            compute_values(func, args, kwargs, outputs)

    def _operate(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """Run the operation, in place if autograd would.

        Return the operation that ran, its arguments and its result.
        """
        written = self._in_place.instead_of(func, args)
        func, args = written or (func, args)
        if id(func) in _INDEXING and not _fills(args):
            # `args` keeps the indices alive until the outputs exist, as the caller of C++ does.
            args = (args[0], self._without_masks(args[1]), *args[2:])
        result = self._run(func, args, kwargs)
        if id(func) in MAKING and is_sparse(result):
            remember_entries(result, value_of(args[MAKING[id(func)]]))
        self._in_place.note(func, result)
        return func, args, result if written is None else args[0].detach()

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the operation's result on meta tensors; repeated layouts come from a cache."""
        try:
            if id(func) in SIZED_BY_VALUES and args[0].is_meta:
                return run_on_values(func, args, kwargs)
            if parts := PARTS.get(id(func)):
                with self:
                    result = parts(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        except UnknownError:
            if self._samples is not None and func is _NONZERO:
                count = self._samples.true_count(args[0], reading_line)
                return torch.empty((count, args[0].dim()), dtype=torch.int64, device="meta")
            raise refusal(
                "makes a tensor whose size depends on values", otherwise=self._sources.running()
            ) from None
        try:
            return self._cache.run(func, args, kwargs)
        except NotImplementedError:
            return self._run_without_kernel(func, args, kwargs)
        except RuntimeError as error:
            # The kernel itself reads a value back.
            if "meta tensors" not in str(error):
                raise
            return self._run_without_kernel(func, args, kwargs)

    def _run_without_kernel(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation without a meta kernel on its operands' values, if all are known."""
        try:
            if func._schema.is_mutable:
                raise UnknownError
            return run_on_values(func, args, kwargs)
        except (UnknownError, RuntimeError):
            running = self._sources.running()
            if func.namespace == "aten":
                raise refusal(
                    f"runs {func}, which torch cannot do without data", otherwise=running
                ) from None
            raise refusal(
                f"runs {func}, an operation of its own without a fake kernel",
                REGISTER,
                otherwise=running,
            ) from None

    def _run_sparse(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation on sparse tensors as its parts, each of which is recorded."""
        written = self._in_place.instead_of(func, args)
        if id(func) in PLAIN or written:
            result = args[0].detach() if written else func(*args, **kwargs)
            if is_sparse(result):
                remember_entries(result, entries_of(args[0]))
            return result
        run = RUN.get(id(func))
        try:
            if run is None:
                raise NotImplementedError
            with self:
                return run(*args, **kwargs)
        except NotImplementedError:
            action = f"runs {func} on a sparse tensor, which a simulation does not follow"
            raise refusal(
                action, "use --device cpu or cuda", otherwise=self._sources.running()
            ) from None
        except UnknownError:
            action = "merges equal entries of a sparse tensor, whose number depends on values"
            raise refusal(action, otherwise=self._sources.running()) from None

    def _without_masks(self, indices: Any) -> Any:
        """Replace masks by the indices of their true places.

        As expandTensors in ATen/native/IndexingUtils.h.
        """
        if not any(
            isinstance(index, torch.Tensor) and index.is_meta and index.dtype == torch.bool
            for index in indices
        ):
            return indices
        expanded = []
        with self:
            for index in indices:
                is_mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool
                expanded += index.nonzero().unbind(1) if is_mask else [index]
        return expanded

    def _add_requests(
        self,
        memory: KernelMemory,
        func: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        events: list[int],
        first_output: int,
    ) -> None:
        """Record what the operation's kernel requests before, between and after its outputs.

        The events from `first_output` on are those of the outputs.
        """
        requests, nbytes = memory.requests(result, args, kwargs)
        if requests:
            outputs = events[first_output:]
            first = self._first + len(self.allocations.nbytes)
            self._add(requests, nbytes, "temporary", self._sources.of(func))
            events[first_output:] = memory.events(outputs, range(first, first + len(requests)))

    def _allocate_range(self, least: int, most: int) -> torch.Tensor:
        """Allocate between two sizes: a range if kernels' requests are recorded, else the least."""
        has_range = self.workspaces is not None
        tensor = torch.empty(most if has_range else least, dtype=torch.uint8, device="meta")
        self._see(tensor, SPACE)
        if has_range and self._events is not None:
            self.allocations.requests[self.number(tensor) - self._first] = between(least, most)
        return tensor

    def _take_workspace(self, func: Any, events: list[int], workspaces: set[str]) -> None:
        """Record cuBLAS's workspace if this thread has none yet."""
        # Autograd runs the backward pass in its own thread for the device, and each thread has its
        # own cuBLAS handle.
        thread = "autograd" if self.segments[-1].phase == "backward" else "main"
        if thread not in workspaces:
            workspaces.add(thread)
            events.append(self._first + len(self.allocations.nbytes))
            self._add(
                [WORKSPACE], [WORKSPACE.nbytes(USUAL_DEVICE)], "workspace", self._sources.of(func)
            )

    def _add(
        self, requests: Sequence[Request], nbytes: Sequence[int], category: Category, source: Source
    ) -> None:
        """Number the requests of a kernel as allocations."""
        first = len(self.allocations.nbytes)
        self.allocations.requests.update(enumerate(requests, first))
        if self.stream:
            numbers = range(first, first + len(nbytes))
            self.allocations.streams.update(dict.fromkeys(numbers, self.stream))
        self.allocations.nbytes.extend(nbytes)
        self.allocations.categories.extend(category for _ in nbytes)
        self.allocations.sources.extend([source] * len(nbytes))

    def _request(self, nbytes: int, category: Category, source: Any) -> int:
        """Number a new allocation; `source` is the operation that requests it, or a Source."""
        allocations = self.allocations
        number = self._first + len(allocations.nbytes)
        if self.stream:
            allocations.streams[len(allocations.nbytes)] = self.stream
        allocations.nbytes.append(nbytes)
        allocations.categories.append(category)
        allocations.sources.append(
            source if isinstance(source, Source) else self._sources.of(source)
        )
        # A request for 0 bytes never reaches the allocator.
        if nbytes and self._events is not None:
            self._events.append(number)
        return number

    def _see(self, tensor: torch.Tensor, source: Any) -> None:
        """Record the tensor's storage if it is new; `source` is its operation, or a Source."""
        if tensor.layout is not torch.strided:
            self._is_sparse = True
            for part in data_of(tensor):
                self._see(part, source)
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if (
            self._events is None
            or key in self._host
            or (key in self._numbers and (key not in self._empty or not storage.nbytes()))
        ):
            return
        self._follow(storage, self._request(storage.nbytes(), self._category, source))

    def _name_short_lived(self, segment: Segment) -> None:
        """Make activations that their own phase frees temporaries.

        Activations are kept for the backward pass.
        """
        freed = {~event for event in segment.events if event < 0}
        for number in freed.intersection(segment.events):
            if self.allocations.categories[number - self._first] == "activation":
                self.name(number, "temporary")

    def _follow(self, storage: torch.UntypedStorage, number: int, *, freed: bool = True) -> None:
        key, holds_bytes = storage._cdata, storage.nbytes() > 0
        # A storage without bytes may get some from an operation that fills it.
        (self._empty.discard if holds_bytes else self._empty.add)(key)

        def ended(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._numbers[key], self._storages[key]
            self._empty.discard(key)
            if holds_bytes and freed and self._events is not None:
                self._events.append(~number)

        self._numbers[key] = number
        self._storages[key] = weakref.ref(storage, ended)


def _named(result: Any) -> dict[str, Any]:
    if isinstance(result, dict):
        return result
    return {} if result is None else {"": result}


@cache
def _unwraps_itself(kind: type) -> bool:
    """Return whether tensors of this class are made of others, by torch's protocol."""
    return hasattr(kind, "__tensor_flatten__")


def _fills(args: Any) -> bool:
    """Return whether values are written at a mask's places without looking the places up.

    A single number is, by canDispatchToMaskedFill in ATen/native/TensorAdvancedIndexing.cpp. For
    other values the trace may not know the places; their count follows from the values
    (indexing.py).
    """
    if len(args) < 3:
        return False
    accumulates = len(args) > 3 and args[3]
    is_one = args[2].numel() == 1 and not accumulates
    return is_one or any(
        isinstance(index, torch.Tensor) and index.dtype == torch.bool and value_of(index) is None
        for index in args[1]
    )
