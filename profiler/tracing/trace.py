"""What a program would allocate on a device, recorded from meta tensors: a stream of alloc and free
events.

Every operation runs on tensors that have shapes but no data, at full size. A storage that appears
is an allocation; the moment when Python and autograd drop the last reference to it is its free, in
the order in which a real run would free it.
"""

import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import compiled
from .composed import PARTS
from .host_reads import READS, HostReads, as_on_cuda, reading_line
from .in_place import InPlace
from .kernel_memory import KERNELS, TAKING, WORKSPACE
from .layouts import data_of, is_sparse
from .matrix_products import PRODUCTS
from .metacache import MetaCache
from .recurrent import SPACE
from .requests import USUAL_DEVICE, Request, between
from .samples import Samples
from .sources import Source, Sources
from .sparse import MAKING, PLAIN, RUN, UnknownCountError
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
_INDEXING = frozenset(
    map(
        id,
        (
            torch.ops.aten.index.Tensor,
            torch.ops.aten.index_put.default,
            torch.ops.aten.index_put_.default,
        ),
    )
)
# The random seed and offset that these operations return live on the host, unless a CUDA graph is
# being captured.
_HOST_OUTPUTS = {id(torch.ops.aten._scaled_dot_product_efficient_attention.default): (2, 3)}


class Recorder(TorchDispatchMode):
    """Records the allocations of everything that runs inside its phases.

    `model` gives the names of modules, parameters and buffers; `first` is the number of the first
    allocation, so that a second recording can go on where another ended. `samples` answer for
    `.item()` on a device tensor, instead of raising UntraceableError; no values are followed then.
    `workspaces`, the threads ("main", "autograd") that have one for cuBLAS already, asks for what
    CUDA's kernels take for themselves; without it there are the operations' outputs alone.
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
        self._host_reads = HostReads(samples, self._sources.running)
        self.workspaces = None if workspaces is None else set(workspaces)
        self._events: list[int] | None = None
        self._category: Category = "temporary"
        self._numbers: dict[int, int] = {}
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._empty: set[int] = set()
        self._is_sparse = False

    @contextmanager
    def phase(self, phase: Phase, category: Category = "temporary") -> Iterator[None]:
        """Record what runs inside as one segment; its allocations are of `category` until something
        names them better.
        """
        segment = Segment(phase)
        self.segments.append(segment)
        self._events, self._category = segment.events, category
        # Two frames up is the function whose `with` this is.
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
            refused = translated(error)
            if refused is None or refused is error:
                raise
            raise refused from error
        finally:
            self._events = None
        self._name_short_lived(segment)

    def number(self, tensor: torch.Tensor) -> int:
        """The number of the allocation that holds the tensor, or a sparse one's values; KeyError
        for one that was never seen.
        """
        return self._numbers[data_of(tensor)[-1].untyped_storage()._cdata]

    def allocate(self, tensor: torch.Tensor, category: Category) -> int:
        """Record a tensor that exists already as an allocation of the current phase; its number."""
        source = self._sources.holding(tensor)
        require_followed(tensor, source.module)
        self._see(tensor, source)
        for part in data_of(tensor):
            self.name(self.number(part), category)
        return self.number(tensor)

    def adopt(self, tensor: torch.Tensor, number: int, *, freed: bool = True) -> None:
        """Know a tensor whose allocation another recording holds under `number`; only its free is
        recorded here.

        Without `freed` the other recording keeps it.
        """
        self._follow(tensor.untyped_storage(), number, freed=freed)

    def expect_sparse(self) -> None:
        """Look for sparse tensors among what operations are given; without any this takes too
        long.
        """
        self._is_sparse = True

    def name(self, number: int, category: Category, owner: str = "") -> None:
        """Say what an allocation was for, and the path of what in the model it belongs to, if there
        is one.
        """
        place = number - self._first
        if place >= 0:
            self.allocations.categories[place] = category
            if owner:
                self.allocations.sources[place] = self.allocations.sources[place]._replace(
                    module=owner
                )

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor lives on the recorded device; host tensors do not."""
        return data_of(tensor)[-1].untyped_storage()._cdata in self._numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(map(_unwraps_itself, types)):
            # It runs the operation on what it is made of, which comes here again.
            return NotImplemented
        if (
            func in READS
            and (read := self._host_reads.run(func, args, kwargs)) is not NotImplemented
        ):
            return read
        if self._is_sparse and any(map(is_sparse, tree_leaves((args, kwargs)))):
            return self._run_sparse(func, args, kwargs)
        if func is SPACE:
            return self._take(*args)
        func, args, result = self._operate(func, args, kwargs)
        seen = len(self._events or ())
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
        if self.workspaces is not None and id(func) in TAKING and self._events is not None:
            self._run_kernel(func, args, kwargs, result, self._events, seen, self.workspaces)
        return result

    def _note_values(self, func: Any, args: Any, kwargs: Any, outputs: list[Any]) -> None:
        """Keep what is needed to know the values of the outputs."""
        if self._samples is not None:
            if id(func) not in PARTS:
                self._samples.note(func, args, kwargs, outputs)
        elif has_values(func, args, outputs):
            compute_values(func, args, kwargs, outputs)

    def _operate(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """Run the operation, in place where autograd would; return what ran, its arguments and its
        result.
        """
        written = self._in_place.instead_of(func, args)
        func, args = written or (func, args)
        if id(func) in _INDEXING and not _fills(args):
            # They are held until the operation's outputs are there, as the caller of this holds its
            # arguments.
            args = (args[0], self._without_masks(args[1]), *args[2:])
        result = self._run(func, args, kwargs)
        if id(func) in MAKING and is_sparse(result):
            remember_entries(result, value_of(args[MAKING[id(func)]]))
        self._in_place.note(func, result)
        return func, args, result if written is None else args[0].detach()

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what the operation makes: on meta tensors the layouts are looked up."""
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
            # What a kernel reads back itself.
            if "meta tensors" not in str(error):
                raise
            return self._run_without_kernel(func, args, kwargs)

    def _run_without_kernel(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operation makes that torch cannot follow without data: it is run on values
        that are known.
        """
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
        """Run an operation on sparse tensors by its parts, each of which is recorded."""
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
        except UnknownCountError:
            action = "merges equal entries of a sparse tensor, whose number depends on values"
            raise refusal(action, otherwise=self._sources.running()) from None

    def _without_masks(self, indices: Any) -> Any:
        """Return the indices with each mask as the places where it is true: expandTensors in
        ATen/native/IndexingUtils.h.
        """
        if not any(
            isinstance(index, torch.Tensor) and index.is_meta and index.dtype == torch.bool
            for index in indices
        ):
            return indices
        found = []
        with self:
            for index in indices:
                is_mask = isinstance(index, torch.Tensor) and index.dtype == torch.bool
                found += index.nonzero().unbind(1) if is_mask else [index]
        return found

    def _run_kernel(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        events: list[int],
        seen: int,
        workspaces: set[str],
    ) -> None:
        """Record what the operation's kernel requests; its outputs are the events from `seen`
        on.
        """
        if func in PRODUCTS:
            self._take_workspace(func, events, workspaces)
        requests, nbytes = KERNELS[func].requests(result, args, kwargs)
        if requests:
            outputs = events[seen:]
            first = self._first + len(self.allocations.nbytes)
            self._add(requests, nbytes, "temporary", self._sources.of(func))
            events[seen:] = KERNELS[func].events(outputs, range(first, first + len(requests)))

    def _take(self, least: int, most: int) -> torch.Tensor:
        """Return memory of a size between two, recorded as a range where kernels' requests are."""
        ranges = self.workspaces is not None
        tensor = torch.empty(most if ranges else least, dtype=torch.uint8, device="meta")
        self._see(tensor, SPACE)
        if ranges and self._events is not None:
            self.allocations.requests[self.number(tensor) - self._first] = between(least, most)
        return tensor

    def _take_workspace(self, func: Any, events: list[int], workspaces: set[str]) -> None:
        """Record cuBLAS's workspace where this thread has none yet."""
        # Autograd runs the backward pass in a thread of its own for the device, and each thread has
        # its own handle of cuBLAS.
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
        allocations.sources.append(
            source if isinstance(source, Source) else self._sources.of(source)
        )
        # A request for nothing never reaches the allocator.
        if nbytes and self._events is not None:
            self._events.append(number)
        return number

    def _see(self, tensor: torch.Tensor, source: Any) -> None:
        """Number the tensor's storage where it is new; `source` is the operation that made it, or a
        Source.
        """
        if tensor.layout is not torch.strided:
            self._is_sparse = True
            for part in data_of(tensor):
                self._see(part, source)
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if self._events is None or (
            key in self._numbers and (key not in self._empty or not storage.nbytes())
        ):
            return
        self._follow(storage, self._request(storage.nbytes(), self._category, source))

    def _name_short_lived(self, segment: Segment) -> None:
        """An activation is kept for the backward pass; what the forward pass frees itself was
        temporary.
        """
        freed = {~event for event in segment.events if event < 0}
        for number in freed.intersection(segment.events):
            if self.allocations.categories[number - self._first] == "activation":
                self.name(number, "temporary")

    def _follow(self, storage: torch.UntypedStorage, number: int, *, freed: bool = True) -> None:
        key, holds_bytes = storage._cdata, storage.nbytes() > 0
        # What has no bytes yet may be given some, by an operation that fills it.
        (self._empty.discard if holds_bytes else self._empty.add)(key)

        def ended(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self._numbers[key], self._storages[key]
            self._empty.discard(key)
            if holds_bytes and freed and self._events is not None:
                self._events.append(~number)

        self._numbers[key] = number
        self._storages[key] = weakref.ref(storage, ended)


@cache
def _unwraps_itself(kind: type) -> bool:
    """Return whether a tensor of this class is made of others, by torch's protocol for such."""
    return hasattr(kind, "__tensor_flatten__")


def _fills(args: Any) -> bool:
    """Return whether values are written where a mask is set without the places' being needed.

    One number is, by canDispatchToMaskedFill in ATen/native/TensorAdvancedIndexing.cpp. Of others
    the trace does not know the places; how many there are follows from the values (masks.py).
    """
    if len(args) < 3:
        return False
    accumulates = len(args) > 3 and args[3]
    is_one = args[2].numel() == 1 and not accumulates
    return is_one or any(
        isinstance(index, torch.Tensor) and index.dtype == torch.bool and value_of(index) is None
        for index in args[1]
    )
