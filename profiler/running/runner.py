"""A run: a process per scenario, its record on disk before the next. A failure is a record."""

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby, islice
from tempfile import TemporaryDirectory

from optprof.optimizers.catalogue import CATALOGUE
from optprof.scenarios import Scenario

from ..machine.memory import kernel_kills
from ..records.record import Outcome, Record
from ..records.store import RunStore
from ..safety import disk
from .child import Job, without_result
from .launching import ONE_NODE, Nodes
from .log import Log, last_lines
from .recording import Recording, reason_of
from .traced_models import model_key
from .worker import ChildEndedError, Worker

_POLL_SECONDS = 0.05
# Waiting scenarios among which one is chosen to start.
_MOST_LOOKED_AT = 100


@dataclass(frozen=True, kw_only=True)
class Runner:
    """The settings of a run; `timeout` is the most seconds per scenario, with its simulation."""

    worker: Worker
    store: RunStore
    snapshots: bool = False
    traces: bool = False
    timeout: float | None = None
    force: bool = False
    nodes: Nodes = ONE_NODE

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
            nodes=self.nodes,
        )
        with Log(self.store) as log:
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
        with Log(self.store) as log:
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
    jobs: int = 1,
    finished: Callable[[int], None] = lambda _place: None,
    snapshots: bool = False,
    traces: bool = False,
    timeout: float | None = None,
    force: bool = False,
    nodes: Nodes = ONE_NODE,
) -> list[Record]:
    """Run all scenarios and append their records to `store`, each as it ends; return them in order.

    Up to `jobs` simulations run at once; a scenario that measures runs alone. `started` is called
    with the place of each scenario before it runs, `finished` once its record is on the disk.
    `snapshots` writes a pickle for memory_viz for each training step that is simulated or runs on
    CUDA, `traces` a trace of torch.profiler for each measured one. `timeout` is in seconds per
    scenario; `force` measures scenarios that would not fit. Measured ranks run on `nodes`. A given
    `worker` is not ended.

    Raises OSError if the run's folder cannot be written: before a scenario without space for its
    record, or after a record with lost files. What runs then is recorded first.
    """
    with nullcontext(worker) if worker else Worker() as run_worker:
        runner = Runner(
            worker=run_worker,
            store=store,
            snapshots=snapshots,
            traces=traces,
            timeout=timeout,
            force=force,
            nodes=nodes,
        )
        with ThisMachine(runner, jobs) as machine:
            return Recording(scenarios, store, machine, started, finished).run()


class ThisMachine:
    """Runs up to `jobs` simulations at once; a scenario that measures runs alone.

    With several jobs, simulations come before measurements.
    """

    starts_at_once = True

    def __init__(self, runner: Runner, jobs: int) -> None:
        self._runner, self._jobs = runner, jobs
        self._threads = ThreadPoolExecutor(max_workers=jobs)
        self._futures: list[Future[list[Record]]] = []
        self._scenarios: Sequence[Scenario] = ()
        self._models: list[Scenario | None] = []
        self._traced: set[Scenario] = set()

    def __enter__(self) -> "ThisMachine":
        return self

    def __exit__(self, *_error: object) -> None:
        self._threads.shutdown()

    def groups(self, scenarios: Sequence[Scenario]) -> list[list[int]]:
        """Take the scenarios; group the simulations that one process can do."""
        self._scenarios, self._models = scenarios, [*map(model_key, scenarios)]
        groups: list[list[int]] = []
        for shares, consecutive in groupby(range(len(scenarios)), self._shared_process):
            places = [*consecutive]
            groups += [places] if shares else [[place] for place in places]
        return groups

    def choose(self, waiting: Sequence[list[int]], running: Iterable[list[int]]) -> int | None:
        """Return the first group; with several jobs, one that waits for nothing that runs."""
        under_way = [group[0] for group in running]
        if not under_way and self._jobs == 1:
            return 0
        simulated = [
            number
            for number, group in enumerate(islice(waiting, _MOST_LOOKED_AT))
            if self._scenarios[group[0]].device == "sim"
        ]
        if not under_way:
            return next(iter(simulated), 0)
        is_alone = any(self._scenarios[place].device != "sim" for place in under_way)
        if is_alone or len(under_way) >= self._jobs or not simulated:
            return None
        # A model's other optimizers wait until it is traced.
        tracing = {self._models[place] for place in under_way} - self._traced
        free = (n for n in simulated if self._models[waiting[n][0]] not in tracing)
        return next(free, simulated[0])

    def start(self, group: Sequence[int]) -> "Future[list[Record]]":
        """Start a group in a thread, which waits for its process."""
        if self._jobs > 1 and self._scenarios[group[0]].device == "sim":
            self._futures.append(self._threads.submit(self._find, group))
            return self._futures[-1]
        # Nothing else runs, and Ctrl-C reaches the scenario in this thread.
        future: Future[list[Record]] = Future()
        future.set_result(self._find(group))
        return future

    def records(self, group: Sequence[int], future: "Future[list[Record]]") -> list[Record]:
        """Return what the thread has found."""
        del group
        return future.result()

    def stop(self) -> None:
        """End the processes, and wait for the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        while wait(self._futures, timeout=_POLL_SECONDS).not_done:
            self._runner.worker.interrupt()

    def _find(self, group: Sequence[int]) -> list[Record]:
        if len(group) > 1:
            return self._runner.find_together([self._scenarios[place] for place in group])
        record = self._runner.find(self._scenarios[group[0]])
        model = self._models[group[0]]
        if model is not None:
            self._traced.add(model)
        return [record]

    def _shared_process(self, place: int) -> Scenario | None:
        """Return the model whose states one process may simulate with this scenario.

        Those run no code but ours, torch's and transformers', and take a few hundredths of a second
        each, less than a process.
        """
        scenario = self._scenarios[place]
        entry = CATALOGUE.get(scenario.optimizer)
        is_ours = entry is not None and entry.package in ("optprof", "torch")
        is_alone = ":" not in scenario.model and scenario.workload == "state"
        return self._models[place] if is_ours and is_alone else None
