"""CUDA's caching allocator while training really runs: its counters by phase, the state's blocks,
its settings and snapshots.
"""

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ..allocator.settings import AllocatorSettings, from_environment, names
from ..records.outcome import outcome_of
from ..records.places import short_name
from ..records.record import Level, StateBlocks
from ..safety import disk
from ..training.state import Tensors, storages_of_state
from .files import Files
from .phases import Counters, PhaseWatch

COUNTERS = ("allocated", "reserved", "requested", "active")
# Events of memory that a snapshot goes back; each takes a few hundred bytes, with its lines of
# Python a few thousand.
MOST_EVENTS = 200_000

# What torch read from the environment when it was loaded, or was told here since.
_applied: str | None = None


def apply_alloc_conf(conf: str) -> None:
    """Give CUDA's allocator the scenario's settings, all of them and no others.

    ValueError where CUDA has started with others, torch does not take them, or it was told a
    setting before that is none of these.
    """
    global _applied
    told = from_environment() if _applied is None else _applied
    if conf == told:
        return
    if torch.cuda.is_initialized():
        raise ValueError(
            f"alloc_conf {conf!r} must be set before CUDA starts; measure this scenario in a"
            " process of its own"
        )
    AllocatorSettings.parse(conf)
    # torch leaves some settings as they are when it is told others.
    if left := names(told) - names(conf):
        raise ValueError(
            f"torch was told {told!r}, and would keep {', '.join(sorted(left))} of it; say that in"
            f" alloc_conf {conf!r} too"
        )
    try:
        torch._C._accelerator_setAllocatorSettings(conf)
    except RuntimeError as error:
        raise ValueError(
            f"torch {torch.__version__} does not take alloc_conf {conf!r}:"
            f" {str(error).splitlines()[0]}"
        ) from error
    _applied = conf


class AllocatorWatch(PhaseWatch):
    """The allocator's counters on the current device by phase, and what the first step leaves
    allocated.
    """

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()
        super().__init__(_counters_of(self._device))
        self.allocated_by_step: int | None = None

    def allocated(self) -> int:
        """Return the bytes that are allocated now."""
        return torch.cuda.memory_allocated(self._device)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch what runs inside."""
        with super().phase(name):
            before = self.allocated()
            yield
        if name == "step" and self.allocated_by_step is None:
            self.allocated_by_step = self.levels()[name]["allocated"].end - before


def state_blocks(
    optimizer: torch.optim.Optimizer, delta: int, model: Tensors | None = None
) -> StateBlocks:
    """The state's tensors set against the blocks that hold them, and against what the first step
    left allocated.
    """
    sizes = _block_sizes()
    storages = storages_of_state(optimizer, model)
    on_device = [storage for storage in storages if storage.device.type == "cuda"]
    blocks = sum(sizes[storage.data_ptr()] for storage in on_device if storage.data_ptr() in sizes)
    held = sum(storage.nbytes() for storage in on_device)
    total = sum(storage.nbytes() for storage in storages)
    return StateBlocks(tensors=total, on_host=total - held, rounding=blocks - held, delta=delta)


def begin_history() -> None:
    """Record what is allocated from now on, with the lines of Python that ask for it."""
    torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS, stacks="python")


def end_history(files: Files, snapshot: Path | None) -> None:
    """Record no more; what there is goes into `snapshot`, one of the files, for memory_viz."""
    if snapshot is not None:
        with files.writing(snapshot), disk.writing(snapshot, below=files.run) as file:
            pickle.dump(_without_folders(torch.cuda.memory._snapshot()), file)
    torch.cuda.memory._record_memory_history(None)


def _without_folders(value: Any) -> Any:
    """Return a snapshot whose stacks name files as `short_name` does, and no folder of this
    machine.
    """
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
    """Write a snapshot where memory runs out inside, and let the exception go on, whatever it is;
    history ends with it.
    """
    try:
        yield
    except BaseException as error:
        # A device in trouble may refuse this as well, and is not to hide what the trouble was.
        with suppress(RuntimeError):
            end_history(files, files.when_full if outcome_of(error) == "out-of-memory" else None)
        raise


@cache
def _counters_of(device: int) -> Counters:
    return Counters(read=partial(_read, device), forget=partial(_forget, device))


def _read(device: int) -> dict[str, Level]:
    stats = torch.cuda.memory_stats(device)
    return {
        counter: Level(
            end=stats[f"{counter}_bytes.all.current"], peak=stats[f"{counter}_bytes.all.peak"]
        )
        for counter in COUNTERS
    }


def _forget(device: int) -> bool:
    torch.cuda.reset_peak_memory_stats(device)
    return True


def _block_sizes() -> dict[int, int]:
    """The bytes of every block in use, by its address."""
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
