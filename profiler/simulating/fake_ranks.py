"""Run torch's own code of one rank of many, on meta tensors and without other processes.

Collectives go to torch's fake process group, which returns at once. In a few places torch's
wrappers refuse meta tensors, or take them for tensors of the host. `following` replaces these
places. They exist in torch 2.11 to 2.13; if another torch has moved one, the error names it.

- FSDP2 takes a device's streams and events from `_get_device_handle` and the device itself from
  `_get_device_from_mesh`. Both answer for the recorded device.
- FSDP2 refuses meta parameters in `_validate_no_meta_params`, and in
  `_validate_cpu_offload_params` those that are offloaded but not on the CPU. Both pass.
- FSDP2 resizes the storage of gathered parameters in `free_storage` and `alloc_storage`, which no
  dispatch mode sees. Both tell the recorder.
- FSDP2 copies offloaded parameters to the device in `all_gather_inputs`. For meta tensors `to`
  copies nothing, so the property copies first.
- FSDP2 makes the buffers of collectives in `allocate`, and gathered parameters in
  `init_all_gather_outputs`. The recorder gives them a category.
- DTensor finds the shapes of new operations in `_propagate_tensor_meta_non_cached`, on fake tensors
  that take no memory. The recorder does not see these.
- DTensor caches layouts by mesh, and takes the meshes of an earlier group for equal ones, whose
  rank or names are not of this group. `DeviceMesh.__init__` gives each the number of its group, as
  torch gives the thread's where every thread is a rank.
- DDP reads a reduced bucket from the result of the collective, which the fake group lacks. A
  communication hook does what DDP does by default, and returns the bucket.
- DDP orders its buckets anew once, in the second step, by `Reducer._rebuild_buckets`. What ranks
  send each other for that belongs to no usual step, and is not recorded.
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest import mock
from warnings import catch_warnings, filterwarnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import _disable_current_modes

from optprof.scenarios import Scenario

from ..tracing.kernel_memory import KERNEL_MEMORY
from ..tracing.sharding_memory import kernels
from ..tracing.stream import Category
from ..tracing.trace import Recorder

_FSDP = "torch.distributed.fsdp._fully_shard"
# Ranks, rank and way of the fake groups of this process; it is in the last one.
_joined: list[tuple[int, int, str]] = []


def become(scenario: Scenario) -> bool:
    """Make this process the scenario's rank in a fake process group of all its ranks.

    Return whether the group is new: tensors of earlier traces refer to a group that is gone. Raises
    RuntimeError in a process that is part of a real group.
    """
    if scenario.parallel is None:
        return False
    own = scenario.ranks, scenario.rank, scenario.parallel
    if dist.is_initialized():
        if dist.get_backend() != "fake":
            raise RuntimeError(
                "a simulation of ranks needs a process of its own, and this one is part of a"
                f" process group ({dist.get_backend()}); use optprof.profile or the command line"
            )
        if _joined[-1:] == [own]:
            return False
        dist.destroy_process_group()
    # The first import registers the backend; the second compiles code, which no trace allows.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with catch_warnings():
        # It uses torch.jit.script, which torch itself calls deprecated.
        filterwarnings("ignore", category=DeprecationWarning)
        import_module("torch.distributed.optim")
    # torch's hook would begin each line of a traceback with the rank.
    with mock.patch("sys.excepthook"):
        dist.init_process_group(
            "fake", store=FakeStore(), rank=scenario.rank, world_size=scenario.ranks
        )
    _joined.append(own)
    return True


def reduce_buckets(model: torch.nn.Module, recorder: Recorder | None = None) -> None:
    """Let DDP reduce its buckets as it does by default, and name them; other models stay."""
    if not isinstance(model, DistributedDataParallel):
        return

    def reduce(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buffer = bucket.buffer()
        if recorder is not None:
            recorder.name(recorder.number(buffer), "communication")
        dist.all_reduce(buffer.div_(dist.get_world_size()))
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(buffer)
        return future

    model.register_comm_hook(None, reduce)
    # It would warn that it takes no times of this device.
    unlogged: Any = model
    unlogged.logger = _Silent()


@contextmanager
def following(recorder: Recorder, scenario: Scenario) -> Iterator[None]:
    """Let FSDP2 run on the recorder's device and its streams inside."""
    if scenario.parallel is None:
        yield
        return
    device = _Device(recorder)
    collectives, group, param, shard, state = (
        import_module(f"{_FSDP}.{name}")
        for name in (
            "_fsdp_collectives",
            "_fsdp_param_group",
            "_fsdp_param",
            "_fully_shard",
            "_fsdp_state",
        )
    )
    one = param.FSDPParam
    shapes = import_module("torch.distributed.tensor._sharding_prop").ShardingPropagator
    find = "_propagate_tensor_meta_non_cached"
    replaced: list[tuple[Any, str, Any]] = [
        *(
            (module, "_get_device_handle", lambda _: device)
            for module in (collectives, group, state)
        ),
        (shapes, find, _unseen(getattr(shapes, find))),
        (DeviceMesh, "__init__", _numbered(DeviceMesh.__init__)),
        (dist.Reducer, "_rebuild_buckets", _unsent(dist.Reducer._rebuild_buckets, recorder)),
        (shard, "_get_device_from_mesh", lambda _: torch.device("meta")),
        (group.FSDPParamGroup, "_validate_no_meta_params", lambda _: None),
        (group.FSDPParamGroup, "_validate_cpu_offload_params", lambda _: None),
        *(
            (module, name, _resizing(getattr(module, name), recorder))
            for module, name in (
                (param, "free_storage"),
                (param, "alloc_storage"),
                (group, "alloc_storage"),
            )
        ),
        (one, "all_gather_inputs", property(_on_device(one.all_gather_inputs.fget))),
        (
            one,
            "init_all_gather_outputs",
            _named(one.init_all_gather_outputs, recorder, "gathered"),
        ),
        (
            collectives.DefaultAllocMixin,
            "allocate",
            _named(collectives.DefaultAllocMixin.allocate, recorder, "communication"),
        ),
    ]
    with ExitStack() as stack, catch_warnings(), mock.patch.dict(KERNEL_MEMORY, kernels()):
        # The models' losses are views, which nothing changes in place.
        filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        for owner, name, replacement in replaced:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _unseen(find: Callable[..., Any]) -> Any:
    def found(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return find(*args, **kwargs)

    return found


def _unsent(rebuild: Callable[[Any], bool], recorder: Recorder) -> Any:
    def rebuilt(reducer: Any) -> bool:
        collectives = recorder.segments[-1].collectives
        before = len(collectives)
        try:
            return rebuild(reducer)
        finally:
            del collectives[before:]

    return rebuilt


def _numbered(make: Callable[..., None]) -> Any:
    def made(mesh: Any, *args: Any, **kwargs: Any) -> None:
        make(mesh, *args, **kwargs)
        mesh._thread_id = len(_joined)

    return made


def _resizing(resize: Callable[[torch.Tensor], None], recorder: Recorder) -> Any:
    def resized(tensor: torch.Tensor) -> None:
        resize(tensor)
        with recorder.allocating("gathered"):
            recorder.resized(tensor)

    return resized


def _on_device(inputs: Callable[[Any], list[torch.Tensor]]) -> Any:
    def copied(param: Any) -> list[torch.Tensor]:
        if not param.offload_to_cpu:
            return inputs(param)
        on_host = param._sharded_param_data
        # Not empty_like, which would make another tensor of the host.
        param._sharded_param_data = torch.empty(on_host.shape, dtype=on_host.dtype, device="meta")
        try:
            return inputs(param)
        finally:
            param._sharded_param_data = on_host

    return copied


def _named(make: Callable[..., Any], recorder: Recorder, category: Category) -> Any:
    def made(*args: Any, **kwargs: Any) -> Any:
        with recorder.allocating(category):
            return make(*args, **kwargs)

    return made


class _Silent:
    """A logger of DDP that logs nothing."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


class _Event:
    """An event of a device on which everything has already happened."""

    def record(self, _: Any = None) -> "_Event":
        return self

    def wait(self, _: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Stream:
    """A stream by its number, which decides the blocks that its requests may get."""

    def __init__(self, number: int) -> None:
        self.number = number

    def wait_stream(self, stream: "_Stream") -> None:
        pass

    def wait_event(self, event: _Event) -> None:
        pass

    def record_event(self) -> _Event:
        return _Event()


class _Device:
    """The recorded device with the functions of `torch.cuda` that FSDP2 calls."""

    Event = _Event

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._streams = [_Stream(0)]

    def Stream(self, priority: int = 0) -> _Stream:  # noqa: ARG002, N802
        self._streams.append(_Stream(len(self._streams)))
        return self._streams[-1]

    def current_stream(self) -> _Stream:
        return self._streams[self._recorder.stream]

    @contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        before, self._recorder.stream = self._recorder.stream, stream.number
        try:
            yield
        finally:
            self._recorder.stream = before
