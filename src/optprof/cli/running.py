"""Parts that commands share: runs by name, the user's code, and running scenarios."""

import gc
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TextIO

import typer

from optprof.reports.progress import busy, progress
from optprof.reports.streams import results_on_stdout, say

from .names import names_code
from .options import RunOptions

if TYPE_CHECKING:
    from optprof.profiler.records.record import Record
    from optprof.profiler.records.store import RunStore
    from optprof.profiler.running.launching import Nodes
    from optprof.profiler.running.worker import Worker
    from optprof.reports.ahead import Ahead
    from optprof.reports.pictures.picture import Drawing, Picture
    from optprof.reports.progress import Shown
    from optprof.scenarios import Scenario

RUNS = Path("runs")
# File systems take 255 bytes, of which "-12" and "-fit" need some.
_MOST_NAME_BYTES = 200
# What a run's folder holds, its page aside.
_FILES = (
    "records.jsonl",
    "records.json",
    "records.csv",
    "figures",
    "timelines",
    "snapshots",
    "tensorboard",
    "logs",
)
SOME_FAILED = 4
INTERRUPTED = 130


def see_own_code(names: str) -> None:
    """Make module:Class and module:factory importable, behind everything that is installed.

    The current folder may be a stranger's: nothing in it runs unless one of the `names` is code.
    """
    if names_code(names):
        places = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        sys.path += [
            str(Path(place).absolute()) for place in places if not Path(place).is_absolute()
        ]
        sys.path.append(str(Path.cwd()))


def run_folder(name: Path) -> Path:
    """Return the folder of a run, named by its path or by its name under runs/."""
    return name if name.exists() else RUNS / name


def run_name(models: str) -> str:
    """Return the name of a run's folder: not hidden, and not too long for a file system."""
    from optprof.profiler.records.privacy import masked

    name = masked(models).replace("~/", "").replace(":", ".").replace("/", ".").lstrip(".")
    data = os.fsencode(name)
    if len(data) <= _MOST_NAME_BYTES:
        return name
    digest = sha256(data).hexdigest()[:8]
    return f"{data[: _MOST_NAME_BYTES // 2].decode(errors='ignore')}-{digest}"


def expect_many_records() -> None:
    """Let the garbage collector run more seldom: records hold no cycles."""
    gc.set_threshold(100_000, 50, 100)


@contextmanager
def session(
    names: str, options: RunOptions, models: Sequence[str], *, is_here: bool = True
) -> Iterator[tuple["Worker | None", TextIO]]:
    """Yield a worker, if scenarios run on this machine, and the stream for results.

    `names` may include the user's models and optimizers, `models` those of the catalogue.
    """
    from optprof.profiler.running.worker import Worker

    # The worker loads torch and the models' code while this process loads torch.
    with results_on_stdout() as stdout, Worker(models) if is_here else nullcontext() as worker:
        # After the worker's start: it imports our code alone, and each job brings its own path.
        see_own_code(names)
        with busy("loading torch"):
            from optprof.profiler.running.plan import require_timeout

        require_timeout(options.timeout)
        yield worker, stdout


def run_all(
    scenarios: "Sequence[Scenario]",
    name: str,
    out: Path | None,
    options: RunOptions,
    worker: "Worker | None",
    stdout: TextIO,
    *,
    ray: Any = None,
    retries: int = 0,
) -> None:
    """Run the scenarios that are not recorded yet, and show the records of all.

    With `ray`, which is connected to a cluster, they run there.
    """
    from optprof.profiler.measuring.files import require_iterations
    from optprof.profiler.running.jobs import require_jobs, usual_jobs
    from optprof.profiler.running.recording import Recording
    from optprof.profiler.running.runner import run
    from optprof.reports.ahead import Ahead
    from optprof.reports.arithmetic.savings import require_baseline

    require_iterations(scenarios, snapshots=options.snapshot, traces=options.trace)
    nodes = _nodes(scenarios, options, on_cluster=ray is not None)
    if worker is not None and not nodes.is_host:
        _take_part(scenarios, options, worker, nodes)
        return
    if options.baseline is not None:
        require_baseline(options.baseline, [scenario.optimizer for scenario in scenarios])
    jobs = usual_jobs() if options.jobs is None else require_jobs(options.jobs)
    store = _open_run(name, out, options)
    waiting = _waiting(scenarios, store, anywhere=ray is not None)
    if not options.no_report:
        # While the worker loads torch: this takes a second, and disturbs no measurement yet. If a
        # package is missing, the report says so after the run.
        with suppress(ImportError):
            import_module("optprof.reports.page")
            import_module("optprof.reports.pictures.drawing")
    ahead = None if options.no_report else Ahead(store.folder, options.baseline, waiting)
    try:
        with progress(waiting, jobs=jobs) as shown, ahead or nullcontext():
            started, finished = _followed_by(shown, ahead, waiting)
            settings: dict[str, Any] = {
                "snapshots": options.snapshot,
                "traces": options.trace,
                "timeout": options.timeout,
                "force": options.force,
            }
            if ray is None:
                run(
                    waiting,
                    store,
                    started,
                    worker=worker,
                    jobs=jobs,
                    finished=finished,
                    nodes=nodes,
                    **settings,
                )
            else:
                from optprof.profiler.running.cluster import Cluster

                cluster = Cluster(ray, store, retries=retries, **settings)
                Recording(waiting, store, cluster, started, finished).run()
    except KeyboardInterrupt:
        print(
            f"interrupted; what is finished is in {store.folder}; to go on:\n "
            f" {_command_to_go_on(store.folder)}",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
    records = store.read_standing()
    _show(records, store, options, stdout, ahead.drawn if ahead else ())
    failed = sum(record.outcome != "ok" for record in records)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _nodes(scenarios: "Sequence[Scenario]", options: RunOptions, *, on_cluster: bool) -> "Nodes":
    """Return the machines of measured ranks; ValueError for options that contradict each other."""
    from optprof.profiler.running.launching import read_nodes, require_nodes

    nodes = read_nodes(options.nnodes, options.rdzv_endpoint)
    require_nodes(scenarios, nodes)
    if nodes.nnodes > 1 and options.resume:
        raise ValueError(
            "--resume works on one machine, for the others do not know what is recorded; run the"
            " missing scenarios with a new --out"
        )
    if nodes.nnodes > 1 and on_cluster:
        raise ValueError(
            "--nnodes measures by the same command on each machine, and --on gives scenarios to a"
            " cluster; leave one of them out"
        )
    return nodes


def _take_part(
    scenarios: "Sequence[Scenario]", options: RunOptions, worker: "Worker", nodes: "Nodes"
) -> None:
    """Measure this machine's ranks; the machine that the endpoint names keeps the records."""
    from optprof.profiler.records.store import RunStore
    from optprof.profiler.running.runner import run

    measured = [each for each in scenarios if each.parallel is not None and each.device != "sim"]
    with TemporaryDirectory() as folder, progress(measured) as shown:
        records = run(
            measured,
            RunStore.create(Path(folder) / "run"),
            shown.started,
            finished=shown.finished,
            worker=worker,
            timeout=options.timeout,
            force=options.force,
            nodes=nodes,
        )
    say(f"this machine took part; the records are on {nodes.endpoint}")
    failed = [record for record in records if record.outcome != "ok"]
    for record in failed:
        scenario = record.scenario
        what = f"{record.outcome}: {scenario.model} {scenario.optimizer}: {record.error}"
        print(what, file=sys.stderr)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _followed_by(
    shown: "Shown", ahead: "Ahead | None", scenarios: "Sequence[Scenario]"
) -> tuple[Callable[[int, "Scenario"], None], Callable[[int], None]]:
    """Return what a run calls at the start and at the end of each scenario."""

    def started(place: int, scenario: "Scenario") -> None:
        if ahead:
            ahead.start(scenario)
        shown.started(place, scenario)

    def finished(place: int) -> None:
        if ahead:
            ahead.finish(scenarios[place])
        shown.finished(place)

    return started, finished


def _open_run(name: str, out: Path | None, options: RunOptions) -> "RunStore":
    """Open the run to write into; clear what an interrupted run has left."""
    from optprof.profiler.records.store import RunStore, last_folder
    from optprof.profiler.safety.disk import require_own_folder

    if out:
        # A command copied from a page has ~ in it, which shells do not expand after --out=.
        out = out.expanduser()
        require_own_folder(out, "records.jsonl", force=options.force)

    name = run_name(name)
    if options.resume:
        store = RunStore.resume(out or last_folder(RUNS, name))
        store.remove_parts()
    elif out:
        store = RunStore.create(out)
    else:
        store = RunStore.create_free(RUNS, name)
    store.anonymous = options.anonymous
    return store


def _waiting(
    scenarios: "Sequence[Scenario]", store: "RunStore", *, anywhere: bool
) -> "Sequence[Scenario]":
    """Return the scenarios without a record; set aside their unreadable timelines.

    Records that were made `anywhere` count if a cluster runs the scenarios.
    """
    from optprof.profiler.machine.environment import environment
    from optprof.profiler.records.store import file_name, standing
    from optprof.profiler.running.resume import pending
    from optprof.scenarios.schema import require_records

    records = store.read()
    lost = store.lost_timelines(standing(records))
    store.warn()
    if not records:
        return scenarios
    waiting = pending(
        scenarios,
        records,
        environment(seed=0),
        lost,
        anonymous=store.anonymous,
        anywhere=anywhere,
    )
    for name in lost & {file_name(scenario) for scenario in waiting}:
        store.set_timeline_aside(name)
    require_records(len(records) + len(waiting))
    done = len(scenarios) - len(waiting)
    say(f"{done} of {len(scenarios)} scenarios are recorded in {store.folder}")
    return waiting


def _command_to_go_on(folder: Path) -> str:
    has_out = any(word == "--out" or word.startswith("--out=") for word in sys.argv)
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return shlex.join(["optprof", *words, *([] if has_out else ["--out", str(folder)]), "--resume"])


def _show(
    records: "Sequence[Record]",
    store: "RunStore",
    options: RunOptions,
    stdout: TextIO,
    drawn: "Iterable[tuple[Picture, Drawing]]",
) -> None:
    """Print the records, the files that were written, and the logs of failed scenarios."""
    from optprof.reports import print_run

    if not options.as_json:
        # Before the report, which a full disk may prevent.
        print_run(records, stdout, baseline=options.baseline)
        stdout.flush()
    page = None
    if not options.no_report:
        from optprof.reports import write_report

        with busy("drawing the report"):
            page = write_report(
                store.folder,
                tensorboard=options.tensorboard,
                force=options.force,
                baseline=options.baseline,
                drawn=drawn,
            )
    failed = sum(record.outcome != "ok" for record in records)
    failure = f"{failed} of {len(records)} scenarios failed" if failed else None
    if options.as_json:
        content = {
            "run": str(store.folder),
            "report": page and str(page),
            "records": [record.to_dict() for record in records],
        }
        content |= {"error": failure, "status": SOME_FAILED} if failure else {}
        print(json.dumps(content, indent=1), file=stdout)
    say(f"report: {page}" if page else f"to draw the report: optprof report {store.folder}")
    say_files(store.folder)
    for record in records:
        if record.outcome == "ok" or not record.log:
            continue
        what = f"{record.outcome}: {record.scenario.model} {record.scenario.optimizer}"
        print(*f"{what}, log in {store.folder / record.log}".split(), file=sys.stderr)
        if options.traceback:
            try:
                print(store.read_log(record), file=sys.stderr)
            except (OSError, ValueError) as error:
                print(f"the log cannot be read: {error}", file=sys.stderr)
    if failure:
        where = "the report lists why" if page else "their records say why"
        print(f"{failure}; {where}", file=sys.stderr)


def say_files(folder: Path) -> None:
    """Name the files of a run besides its page; with --verbose each on a line."""
    names: list[str] = []
    for path in map(folder.joinpath, _FILES):
        inside = sorted(each for each in path.rglob("*") if each.is_file())
        if path.is_file():
            names.append(path.name)
        elif inside:
            names.append(f"{path.name}/ ({len(inside)} file{'s' if len(inside) > 1 else ''})")
        for each in [path] if path.is_file() else inside:
            say(f"  {each}", level=1)
    say(f"also in {folder}: {', '.join(names)}")
