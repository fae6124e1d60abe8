"""CUDA's caching allocator during a measurement: counters by phase, blocks, settings, snapshots."""

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from optprof.scenarios import Scenario

from ..allocator.out_of_memory import format_bytes
from ..allocator.settings import AllocatorSettings, from_environment, names
from ..records.outcome import outcome_of
from ..records.places import short_name
from ..records.record import Level, Record, StateBlocks
from ..safety import disk
from ..training.state import Tensors, storages_of_state
from .files import Files
from .phases import Counters, PhaseWatch

COUNTERS = ("allocated", "reserved", "requested", "active")
# Events in a snapshot's history. One takes a few hundred bytes, with its Python stack a few
# thousand.
MOST_EVENTS = 200_000

# The settings applied here; None while those that torch read from the environment are in force.
_applied: str | None = None


def apply_alloc_conf(conf: str) -> None:
    """Give CUDA's allocator exactly the scenario's settings.

    Raises ValueError if CUDA has started with others, if torch does not accept them, or if torch
    would keep an earlier setting that they do not name.
    """
    global _applied
    before = from_environment() if _applied is None else _applied
    if conf == before:
        return
    if torch.cuda.is_initialized():
        raise ValueError(
            f"alloc_conf {conf!r} must be set before CUDA starts; measure this scenario in a"
            " process of its own"
        )
    AllocatorSettings.parse(conf)
    # torch keeps some settings that a later call does not name.
    if left := names(before) - names(conf):
        raise ValueError(
            f"torch has the settings {before!r} and would keep {', '.join(sorted(left))}; set that"
            f" in alloc_conf {conf!r} too"
        )
    try:
        torch._C._accelerator_setAllocatorSettings(conf)
    except RuntimeError as error:
        raise ValueError(
            f"torch {torch.__version__} does not accept alloc_conf {conf!r}:"
            f" {str(error).splitlines()[0]}"
        ) from error
    _applied = conf


class DoesNotFitError(MemoryError):
    """By its simulation, a scenario needs more than the free memory."""


def require_room(scenario: Scenario, simulated: Record | None) -> None:
    """Raise DoesNotFitError if a CUDA scenario allocates more at once than its device has free.

    Only the allocated peak counts: the allocator releases the rest of what it reserved when memory
    runs short. On the CPU `measure` reduces the scenario. Without a simulation nothing is raised.
    """
    memory = simulated.memory if simulated else None
    if scenario.device != "cuda" or memory is None or memory.peak_allocated is None:
        return
    # `mem_get_info` starts CUDA, which reads the allocator's settings. It counts the context.
    apply_alloc_conf(scenario.alloc_conf)
    free, total = torch.cuda.mem_get_info()
    if memory.peak_allocated > free:
        raise DoesNotFitError(
            f"needs {format_bytes(memory.peak_allocated)} by simulation, and {format_bytes(free)}"
            f" of {format_bytes(total)} are free; --force runs it all the same"
        )


class AllocatorWatch(PhaseWatch):
    """The allocator's counters on the current device, by phase.

    `allocated_by_step` is the number of bytes by which the first step raised them.
    """

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()
        super().__init__(_counters_of(self._device))
        self.allocated_by_step: int | None = None

    def allocated(self) -> int:
        """Return the bytes allocated now."""
        return torch.cuda.memory_allocated(self._device)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch the code inside; an exception discards the phase."""
        with super().phase(name):
            before = self.allocated()
            yield
        if name == "step" and self.allocated_by_step is None:
            self.allocated_by_step = self.levels()[name]["allocated"].end - before


def state_blocks(
    optimizer: torch.optim.Optimizer, delta: int, model: Tensors | None = None
) -> StateBlocks:
    """Return the bytes of the state's tensors, of their blocks, and `delta`, the first step's."""
    sizes = _block_sizes()
    storages = storages_of_state(optimizer, model)
    on_device = [storage for storage in storages if storage.device.type == "cuda"]
    blocks = sum(sizes[storage.data_ptr()] for storage in on_device if storage.data_ptr() in sizes)
    nbytes = sum(storage.nbytes() for storage in on_device)
    total = sum(storage.nbytes() for storage in storages)
    return StateBlocks(tensors=total, on_host=total - nbytes, rounding=blocks - nbytes, delta=delta)


def begin_history() -> None:
    """Start recording allocations, each with its Python stack."""
    torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS, stacks="python")


def end_history(files: Files, snapshot: Path | None) -> None:
    """Stop recording; write the history to `snapshot`, one of `files`, for memory_viz."""
    if snapshot is not None:
        with files.writing(snapshot), disk.writing(snapshot, below=files.run) as file:
            pickle.dump(_without_folders(torch.cuda.memory._snapshot()), file)
    torch.cuda.memory._record_memory_history(None)


def _without_folders(value: Any) -> Any:
    """Return the snapshot with short file names, which contain no folder of this machine."""
    if isinstance(value, dict):
        parts = {key: _without_folders(part) for key, part in value.items()}
        return (
            parts | {"filename": short_name(value["filename"])}
            if isinstance(value.get("filename"), str)
            else parts
        )
    return [_without_folders(part) for part in value] if isinstance(value, list) else value


@contextmanager
def snapshot_when_full(files: Files) -> Iterator[None]:
    """Stop recording at an exception, and write a snapshot if memory ran out. Raise it again."""
    try:
        yield
    except BaseException as error:
        # A device in trouble may refuse this too; that must not hide the first exception.
        with suppress(RuntimeError):
            end_history(files, files.when_full if outcome_of(error) == "out-of-memory" else None)
        raise


@cache
def _counters_of(device: int) -> Counters:
    return Counters(read=partial(_read, device), reset=partial(_reset, device))


def _read(device: int) -> dict[str, Level]:
    stats = torch.cuda.memory_stats(device)
    return {
        counter: Level(
            end=stats[f"{counter}_bytes.all.current"], peak=stats[f"{counter}_bytes.all.peak"]
        )
        for counter in COUNTERS
    }


def _reset(device: int) -> bool:
    torch.cuda.reset_peak_memory_stats(device)
    return True


def _block_sizes() -> dict[int, int]:
    """Return the bytes of each block in use by its address."""
    return {
        address: size
        for segment in torch.cuda.memory_snapshot()
        for address, size in _blocks(segment)
    }


def _blocks(segment: dict) -> Iterable[tuple[int, int]]:
    address = segment["address"]
    for block in segment["blocks"]:
        if block["state"] == "active_allocated":
            yield address, block["size"]
        address += block["size"]
