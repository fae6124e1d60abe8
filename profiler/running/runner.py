"""A run: a process per scenario, its record on disk before the next. A failure is a record."""

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import takewhile
from tempfile import TemporaryDirectory

from optprof.optimizers.catalogue import CATALOGUE
from optprof.scenarios import Scenario

from ..machine.environment import command
from ..machine.memory import kernel_kills
from ..measuring.files import files_of
from ..records import planned
from ..records.record import Outcome, Record
from ..records.store import RunStore
from ..safety import disk
from .child import Job, without_result
from .launching import ONE_MACHINE, Machines
from .log import Log, last_lines
from .traced_models import model_key
from .worker import ChildEndedError, Worker

# Free space on disk for the next record; one with many samples takes half of it.
_FREE_BYTES = 64 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Runner:
    """The settings of a run; `timeout` is the most seconds per scenario, with its simulation."""

    worker: Worker
    store: RunStore
    snapshots: bool = False
    traces: bool = False
    timeout: float | None = None
    force: bool = False
    machines: Machines = ONE_MACHINE

    def find(self, scenario: Scenario) -> Record:
        """Return the scenario's record, not yet stored; `lost` has the files not written."""
        # The path may be relative, and a scenario's code may change the working directory.
        folder = self.store.folder.absolute()
        job = Job(
            scenario=scenario,
            folder=str(folder),
            snapshots=self.snapshots,
            traces=self.traces,
            force=self.force,
            machines=self.machines,
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

    def find_together(self, scenarios: Sequence[Scenario]) -> list[Record]:
        """Return the records of simulations that one process runs, none of them yet stored.

        None of them if the process prints something, or if any fails: each then runs by itself.
        """
        first, *others = scenarios
        job, records = Job(scenario=first, together=tuple(others)), []
        timeout = None if self.timeout is None else self.timeout * len(scenarios)
        folder = self.store.folder.absolute()
        with Log(self.store.log_path().absolute(), below=folder) as log:
            try:
                answer = self.worker.ask(job, log, timeout).get("records")
                records = [Record.from_dict(each) for each in answer or ()]
            except (TimeoutError, ValueError, TypeError, ChildEndedError):
                pass
        if log.is_there:
            disk.remove(log.path)
        is_sound = log.last_words == "" and all(record.outcome == "ok" for record in records)
        if not is_sound or len(records) != len(scenarios):
            return []
        pairs = zip(records, scenarios, strict=True)
        return [replace(record, scenario=scenario) for record, scenario in pairs]

    def _measured(self, job: Job, log: Log) -> Record:
        """Return the record of a measurement, after a simulation of what it needs."""
        from ..measuring.measurement import to_simulate

        start = time.monotonic()
        simulated = self._record(
            replace(job, scenario=to_simulate(job.scenario), folder=None), log, self.timeout
        )
        left = None if self.timeout is None else max(0.0, self.timeout - (time.monotonic() - start))
        # Ranks that are killed remove nothing.
        with TemporaryDirectory(prefix="optprof-") as scratch:
            return self._record(replace(job, simulated=simulated, scratch=scratch), log, left)

    def _record(self, job: Job, log: Log, timeout: float | None) -> Record:
        """Return the record that answers the job, or one that says how its process ended."""
        kills = kernel_kills()
        try:
            answer = self.worker.ask(job, log, timeout)
            return Record.from_dict(answer.get("record"))
        except TimeoutError:
            return without_result(job.scenario, "timeout", f"no result after {self.timeout:g} s")
        except ValueError as error:
            return without_result(
                job.scenario, "failed", f"the process answered without a record: {error}"
            )
        except ChildEndedError as error:
            by_kernel = error.status == -signal.SIGKILL and kernel_kills() > kills
            outcome: Outcome = (
                "out-of-memory" if by_kernel else "killed" if error.status < 0 else "failed"
            )
            words = (
                "the kernel ended the process: the machine, or its control group, ran out of memory"
                if by_kernel
                else str(error)
            )
            return without_result(
                job.scenario, outcome, "; ".join(filter(None, (words, last_lines(log.last_words))))
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
    machines: Machines = ONE_MACHINE,
) -> list[Record]:
    """Run all scenarios and append their records to `store`, one by one.

    `started` is called with the place of each scenario before it runs. `snapshots` writes a pickle
    for memory_viz for each training step that is simulated or runs on CUDA, `traces` a trace of
    torch.profiler for each measured one. `timeout` is in seconds per scenario; `force` measures
    scenarios that would not fit. Measured ranks run on `machines`. A given `worker` is not ended.
    Raises OSError if the run's folder cannot be written: before a scenario without space for its
    record, or after a record with lost files.
    """
    records = []
    with nullcontext(worker) if worker else Worker() as run_worker:
        runner = Runner(
            worker=run_worker,
            store=store,
            snapshots=snapshots,
            traces=traces,
            timeout=timeout,
            force=force,
            machines=machines,
        )
        words = command()
        planned.begin(store.folder, scenarios, words, anonymous=store.anonymous)
        together: list[Record] = []
        tried = 0
        for place, scenario in enumerate(scenarios):
            _require_space(store)
            started(place, scenario)
            if place == tried:
                group = _alike(scenarios[place:])
                tried = place + len(group)
                together = runner.find_together(group) if len(group) > 1 else []
            record = append(store, together.pop(0) if together else runner.find(scenario))
            records.append(record)
            if record.lost:
                raise OSError(
                    f"{store.folder}/{record.lost[0]}; its record is kept: repair that, and go on"
                    " with --resume"
                )
        planned.end(store.folder, words, anonymous=store.anonymous)
    return records


def _alike(scenarios: Sequence[Scenario]) -> Sequence[Scenario]:
    """Return the first scenarios, as far as one process may simulate all of them.

    Those are about the state alone of one model, and run no code but ours, torch's and
    transformers'. They take a few hundredths of a second each, less than a process.
    """

    def key(scenario: Scenario) -> Scenario | None:
        entry = CATALOGUE.get(scenario.optimizer)
        is_ours = entry is not None and entry.package in ("optprof", "torch")
        is_alone = ":" not in scenario.model and scenario.workload == "state"
        return model_key(scenario) if is_ours and is_alone else None

    first = key(scenarios[0])
    others = scenarios[1:] if first else ()
    return [scenarios[0], *takewhile(lambda scenario: key(scenario) == first, others)]


def _require_space(store: RunStore) -> None:
    """Raise OSError if the disk has no space for another record, before hours of measuring."""
    if not hasattr(os, "statvfs"):
        return
    disk_state = os.statvfs(store.folder)
    # Some file systems report 0 blocks.
    if disk_state.f_blocks and disk_state.f_bavail * disk_state.f_frsize < _FREE_BYTES:
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
