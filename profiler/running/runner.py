"""A run: scenario after scenario in child processes, each one's record on disk before the next begins; what fails becomes a record too.

Each measured scenario has a fresh child. Simulated ones, which no clock and no allocator can spoil, share one child for as long as all goes
well, because they share the trace of their model: 5 seconds for gpt2-xl, where loading torch takes 3 more.
"""

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from scenarios import Scenario

from ..host_memory import kernel_kills
from ..record import Outcome, Record
from ..store import RunStore
from .child import Job, without_result
from .worker import ChildEndedError, Worker

# Children that load side by side before a measurement, so that only every second one is waited for.
_AHEAD = 2
_LAST_LINES = 3
_MOST_TOLD = 600
_LOG_BYTES_READ = 64 << 10


class Crew:
    """The children of a run: one that simulates, and fresh ones that measure a scenario each. The first loads at once."""

    def __init__(self, make: Callable[[], Worker] = Worker) -> None:
        self._make = make
        self._simulator: Worker | None = make()
        self._fresh: list[Worker] = []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.dismiss_simulator()
        while self._fresh:
            self._fresh.pop().end()

    def simulator(self) -> Worker:
        """The child that simulates, another one if that is gone."""
        if self._simulator is not None and not self._simulator.alive:
            self.dismiss_simulator()
        if self._simulator is None:
            self._simulator = self._make()
        return self._simulator

    def dismiss_simulator(self) -> None:
        """End the child that simulates; the next scenario starts with nothing that it has left behind."""
        if self._simulator is not None:
            self._simulator.end()
            self._simulator = None

    def prepare(self, count: int) -> None:
        """Have fresh children load while something else goes on."""
        for worker in [worker for worker in self._fresh if not worker.alive]:
            worker.end()
            self._fresh.remove(worker)
        while len(self._fresh) < count:
            self._fresh.append(self._make())

    def measurer(self) -> Worker:
        """A fresh child, loaded, while no other is loading: nothing is to run beside a measurement. The caller ends it."""
        self.prepare(1)
        for worker in self._fresh:
            # Whoever has it later is told that it is gone.
            with suppress(ChildEndedError):
                worker.wait_until_ready()
        return self._fresh.pop(0)


class LostFileError(OSError):
    """The run's folder did not take a file that belongs beside the `record`, which is whole."""

    def __init__(self, record: Record, *told: Any) -> None:
        super().__init__(*told)
        self.record = record


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What holds for all scenarios of a run; `timeout` is the seconds that one may take, its simulation included where it is measured."""

    crew: Crew
    store: RunStore
    snapshots: bool = False
    traces: bool = False
    timeout: float | None = None
    force: bool = False

    def find(self, scenario: Scenario, following: Iterable[Scenario] = ()) -> Record:
        """The scenario's record, not yet stored; `following` is what children load for.

        LostFileError, with the record, when the run's folder cannot be written.
        """
        # A scenario's code may change the directory that it runs in.
        job = Job(
            scenario=scenario,
            log=str(self.store.log_path().absolute()),
            folder=str(self.store.folder.absolute()),
            snapshots=self.snapshots,
            traces=self.traces,
            force=self.force,
        )
        measured = [other for other in following if other.device != "sim"]
        return self._simulate(job, measured) if scenario.device == "sim" else self._measure(job, measured)

    def _simulate(self, job: Job, measured: Sequence[Scenario]) -> Record:
        worker = self.crew.simulator()
        if measured:
            self.crew.prepare(min(_AHEAD, len(measured)))
        record = self._record(worker, job, self.timeout)
        if record.memory is None:
            self.crew.dismiss_simulator()
        return record

    def _measure(self, job: Job, measured: Sequence[Scenario]) -> Record:
        self.crew.prepare(min(_AHEAD, 1 + len(measured)))
        start = time.monotonic()
        simulated = self._simulated(job)
        left = None if self.timeout is None else max(0.0, self.timeout - (time.monotonic() - start))
        worker = self.crew.measurer()
        try:
            return self._record(worker, replace(job, simulated=simulated), left)
        finally:
            worker.end()

    def _simulated(self, job: Job) -> Record:
        """What the simulation says of a scenario that is to be measured; a record without memory where it says nothing."""
        from ..measuring.measurement import to_simulate

        asked = replace(job, scenario=to_simulate(job.scenario), folder=None)
        found = self._record(self.crew.simulator(), asked, self.timeout)
        if found.memory is None:
            self.crew.dismiss_simulator()
        return found

    def _record(self, worker: Worker, job: Job, timeout: float | None) -> Record:
        """The child's record of the job, or the record of how the child ended."""
        kills = kernel_kills()
        try:
            answer = worker.ask(job, timeout)
        except TimeoutError:
            worker.end()
            return self._ended(job, "timeout", f"no result after {self.timeout:g} s")
        except ValueError as error:
            worker.end()
            return self._ended(job, "failed", str(error))
        except ChildEndedError as error:
            by_kernel = error.status == -signal.SIGKILL and kernel_kills() > kills
            outcome: Outcome = "out-of-memory" if by_kernel else "killed" if error.status < 0 else "failed"
            words = "the kernel ended the process: the machine, or its control group, had no memory left" if by_kernel else str(error)
            return self._ended(job, outcome, words, _last_lines(_end_of(Path(job.log)) or worker.early_words()))
        return self._answered(job, answer)

    def _answered(self, job: Job, answer: dict[str, Any]) -> Record:
        try:
            record = Record.from_dict(answer.get("record"))
        except ValueError as error:
            return self._ended(job, "failed", f"the process answered with no record: {error}")
        record = replace(record, scenario=job.scenario, log=self._log(job))
        if lost := answer.get("lost"):
            raise LostFileError(record, *lost[0])
        return record

    def _ended(self, job: Job, outcome: Outcome, *words: str) -> Record:
        return without_result(job.scenario, outcome, "; ".join(filter(None, words)), self._log(job))

    def _log(self, job: Job) -> str | None:
        """The log's path below the run's folder; one without a word in it is removed."""
        path = Path(job.log)
        if not path.is_file():
            return None
        if path.stat().st_size == 0:
            path.unlink()
            with suppress(OSError):
                path.parent.rmdir()
            return None
        return str(path.relative_to(self.store.folder.absolute()))


def run(
    scenarios: Sequence[Scenario],
    store: RunStore,
    started: Callable[[int, Scenario], None],
    *,
    crew: Crew | None = None,
    snapshots: bool = False,
    traces: bool = False,
    timeout: float | None = None,
    force: bool = False,
) -> list[Record]:
    """The records of all scenarios, appended to `store` one by one; `started` is told the place of each scenario before it runs.

    `snapshots` leaves a pickle for memory_viz beside the record of every training step that is simulated or runs on CUDA, `traces` one of
    torch.profiler's traces beside every measured one. `timeout` is seconds for each scenario; `force` measures what would not fit. Children
    are ended however this ends. OSError when the run's folder cannot be written.
    """
    records = []
    with crew or Crew() as children:
        runner = Runner(crew=children, store=store, snapshots=snapshots, traces=traces, timeout=timeout, force=force)
        for place, scenario in enumerate(scenarios):
            started(place, scenario)
            try:
                record = runner.find(scenario, scenarios[place + 1 : place + _AHEAD])
            except LostFileError as error:
                store.append(error.record)
                raise
            store.append(record)
            records.append(record)
    return records


def _end_of(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES_READ))
        return file.read().decode(errors="replace")


def _last_lines(text: str) -> str:
    """The last lines of a log as one line; what a terminal would take for orders is left out."""
    lines = ["".join(filter(str.isprintable, line)).strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    told = " | ".join(lines[-_LAST_LINES:])
    return told if len(told) <= _MOST_TOLD else f"...{told[-_MOST_TOLD:]}"
