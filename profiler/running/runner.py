"""A run: each scenario in a process of its own, its record on disk before the next begins. What
fails is a record too.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from optprof.scenarios import Scenario

from ..machine.memory import kernel_kills
from ..records.record import Outcome, Record
from ..records.store import RunStore
from ..safety import disk
from .beside import written_beside
from .child import Job, without_result
from .log import Log
from .worker import ChildEndedError, Worker

_LAST_LINES = 3
_MOST_TOLD = 600
# Of the disk, for the record of the next scenario: those with many samples have half as much.
_ROOM_BYTES = 64 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What holds for all scenarios of a run; `timeout` is the seconds that one may take, its
    simulation included where it is measured.
    """

    worker: Worker
    store: RunStore
    snapshots: bool = False
    traces: bool = False
    timeout: float | None = None
    force: bool = False

    def find(self, scenario: Scenario) -> Record:
        """The scenario's record, not yet stored; it says what of it could not be written."""
        # The run may be named by a relative path, and a scenario's code may change the directory
        # that it runs in.
        folder = self.store.folder.absolute()
        job = Job(
            scenario=scenario,
            folder=str(folder),
            snapshots=self.snapshots,
            traces=self.traces,
            force=self.force,
        )
        with Log(self.store.log_path().absolute(), below=folder) as log:
            record = (
                self._record(job, log, self.timeout)
                if scenario.device == "sim"
                else self._measured(job, log)
            )
        name = log.path.relative_to(folder).as_posix()
        lost = () if log.error is None else (f"{name}: {reason_of(log.error)}",)
        return replace(
            record, scenario=scenario, log=name if log.is_there else None, lost=record.lost + lost
        )

    def _measured(self, job: Job, log: Log) -> Record:
        """The record of a measurement, for which the simulation has said what it needs."""
        from ..measuring.measurement import to_simulate

        start = time.monotonic()
        simulated = self._record(
            replace(job, scenario=to_simulate(job.scenario), folder=None), log, self.timeout
        )
        left = None if self.timeout is None else max(0.0, self.timeout - (time.monotonic() - start))
        return self._record(replace(job, simulated=simulated), log, left)

    def _record(self, job: Job, log: Log, timeout: float | None) -> Record:
        """The answer to the job, or the record of how its process ended."""
        kills = kernel_kills()
        try:
            answer = self.worker.ask(job, log, timeout)
            return Record.from_dict(answer.get("record"))
        except TimeoutError:
            return without_result(job.scenario, "timeout", f"no result after {self.timeout:g} s")
        except ValueError as error:
            return without_result(
                job.scenario, "failed", f"the process answered with no record: {error}"
            )
        except ChildEndedError as error:
            by_kernel = error.status == -signal.SIGKILL and kernel_kills() > kills
            outcome: Outcome = (
                "out-of-memory" if by_kernel else "killed" if error.status < 0 else "failed"
            )
            words = (
                "the kernel ended the process: the machine, or its control group, had no memory"
                " left"
                if by_kernel
                else str(error)
            )
            return without_result(
                job.scenario, outcome, "; ".join(filter(None, (words, _last_lines(log.last_words))))
            )


def run(
    scenarios: Sequence[Scenario],
    store: RunStore,
    started: Callable[[int, Scenario], None],
    *,
    worker: Worker | None = None,
    snapshots: bool = False,
    traces: bool = False,
    timeout: float | None = None,
    force: bool = False,
) -> list[Record]:
    """The records of all scenarios, appended to `store` one by one; `started` is told the place of
    each scenario before it runs.

    `snapshots` leaves a pickle for memory_viz beside the record of every training step that is
    simulated or runs on CUDA, `traces` one of torch.profiler's traces beside every measured one.
    `timeout` is seconds for each scenario; `force` measures what would not fit. A `worker` is used
    and not ended. OSError when the run's folder cannot be written: before a scenario for whose
    record there is no room, or after a record of which something was lost.
    """
    records = []
    with nullcontext(worker) if worker else Worker() as asked:
        runner = Runner(
            worker=asked,
            store=store,
            snapshots=snapshots,
            traces=traces,
            timeout=timeout,
            force=force,
        )
        for place, scenario in enumerate(scenarios):
            _require_room(store)
            started(place, scenario)
            record = append(store, runner.find(scenario))
            records.append(record)
            if record.lost:
                raise OSError(
                    f"{store.folder}/{record.lost[0]}; its record is kept: mend that, and go on"
                    " with --resume"
                )
    return records


def _require_room(store: RunStore) -> None:
    """OSError where the disk has no room for another record: what takes hours is not begun then."""
    if not hasattr(os, "statvfs"):
        return
    found = os.statvfs(store.folder)
    # Some file systems tell nothing.
    if found.f_blocks and found.f_bavail * found.f_frsize < _ROOM_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store.records_path))


def append(store: RunStore, record: Record) -> Record:
    """Append the record and return it; on a full disk what lies beside it gives way, the largest
    first.
    """
    beside = written_beside(store, record)
    while True:
        try:
            store.append(record)
            return record
        except OSError as error:
            if error.errno not in _FULL or not beside:
                raise
            path = beside.pop(0)
            disk.remove(path)
            name = path.relative_to(store.folder).as_posix()
            lost = f"{name}: removed for the record, {reason_of(error)}"
            record = replace(
                record, lost=(*record.lost, lost), log=None if name == record.log else record.log
            )


def reason_of(error: OSError | ValueError) -> str:
    """Return the reason of an error, without the file's name."""
    return getattr(error, "strerror", None) or str(error)


def _last_lines(text: str) -> str:
    """The last lines of a log as one line; what a terminal would take for orders is left out."""
    lines = [
        "".join(filter(str.isprintable, line)).strip()
        for line in text.splitlines()
        if any(map(str.isalnum, line))
    ]
    told = " | ".join(lines[-_LAST_LINES:])
    return told if len(told) <= _MOST_TOLD else f"...{told[-_MOST_TOLD:]}"
