"""Recording: scenarios are recorded as they end, in any order, by the one process that asks."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Any, Protocol

from optprof.scenarios import Scenario

from ..machine.environment import command
from ..measuring.files import files_of
from ..records import planned
from ..records.record import Record
from ..records.store import RunStore
from ..safety import disk

# Free space on disk for the next record; one with many samples takes half of it.
_FREE_BYTES = 64 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Machines(Protocol):
    """The place where scenarios run: this machine, or a cluster. Groups are places of scenarios.

    A scenario that was given to a cluster waits there, and does not start at once.
    """

    starts_at_once: bool

    def groups(self, scenarios: Sequence[Scenario]) -> list[list[int]]:
        """Take the scenarios of a run; return which ones start together."""
        ...

    def choose(self, waiting: Sequence[list[int]], running: Iterable[list[int]]) -> int | None:
        """Return the number of the waiting group to start now; None if there is no room."""
        ...

    def start(self, group: Sequence[int]) -> "Future[Any]":
        """Start a group."""
        ...

    def records(self, group: Sequence[int], future: "Future[Any]") -> list[Record]:
        """Return the records of a group that has ended, or none of them to start each alone."""
        ...

    def stop(self) -> None:
        """End all that runs."""
        ...


class Recording:
    """Records scenarios as they end, in any order, and knows which still run.

    If the disk is full, what runs is recorded before the error is raised, and nothing else starts.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        store: RunStore,
        machines: Machines,
        started: Callable[[int, Scenario], None],
        finished: Callable[[int], None],
    ) -> None:
        self._scenarios, self._store, self._machines = scenarios, store, machines
        self._started, self._finished = started, finished
        self._first = store.next_place()
        self._waiting = deque(machines.groups(scenarios))
        self._running: dict[Future[Any], list[int]] = {}
        self._begun: set[int] = set()
        self._records: dict[int, Record] = {}

    def run(self) -> list[Record]:
        """Run all scenarios; `running.runner.run` says which errors this raises."""
        words, store = command(), self._store
        planned.begin(store.folder, self._scenarios, words, anonymous=store.anonymous)
        trouble: OSError | None = None
        try:
            while self._running or (self._waiting and trouble is None):
                try:
                    while trouble is None and (chosen := self._chosen()) is not None:
                        self._start(chosen)
                    for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                        group = self._running.pop(future)
                        self._keep(group, self._machines.records(group, future))
                except OSError as error:
                    trouble = trouble or error
        except BaseException:
            self._machines.stop()
            raise
        if trouble is not None:
            raise trouble
        planned.end(store.folder, words, anonymous=store.anonymous)
        return [self._records[place] for place in sorted(self._records)]

    def _chosen(self) -> int | None:
        if not self._waiting:
            return None
        return self._machines.choose(self._waiting, self._running.values())

    def _start(self, number: int) -> None:
        _require_space(self._store, len(self._running) + 1)
        group = self._waiting[number]
        del self._waiting[number]
        if self._machines.starts_at_once:
            self._begin(group[0])
        self._running[self._machines.start(group)] = group

    def _begin(self, place: int) -> None:
        if place not in self._begun:
            self._begun.add(place)
            self._started(place, self._scenarios[place])

    def _keep(self, places: Sequence[int], records: Sequence[Record]) -> None:
        if not records:
            self._waiting.extendleft([place] for place in reversed(places))
            return
        for place, record in zip(places, records, strict=True):
            self._begin(place)
            kept = append(self._store, replace(record, place=self._first + place))
            self._records[place] = kept
            self._finished(place)
            if kept.lost:
                raise OSError(
                    f"{self._store.folder}/{kept.lost[0]}; its record is kept: repair that, and go"
                    " on with --resume"
                )


def _require_space(store: RunStore, count: int) -> None:
    """Raise OSError if the disk has no space for `count` records, before hours of measuring."""
    if not hasattr(os, "statvfs"):
        return
    disk_state = os.statvfs(store.folder)
    # Some file systems report 0 blocks.
    free = disk_state.f_bavail * disk_state.f_frsize
    if disk_state.f_blocks and free < count * _FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store.records_path))


def append(store: RunStore, record: Record) -> Record:
    """Append the record and return it; on a full disk, remove its files until it fits.

    The largest file goes first, and the record's `lost` names it.
    """
    files = files_of(store, record)
    while True:
        try:
            store.append(record)
            return record
        except OSError as error:
            if error.errno not in _FULL or not files:
                raise
            path = files.pop(0)
            disk.remove(path)
            name = path.relative_to(store.folder).as_posix()
            lost = f"{name}: removed for the record, {reason_of(error)}"
            record = replace(
                record, lost=(*record.lost, lost), log=None if name == record.log else record.log
            )


def reason_of(error: OSError | ValueError) -> str:
    """Return the reason of an error, without the file's name."""
    return getattr(error, "strerror", None) or str(error)
