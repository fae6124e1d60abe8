"""The library for programs and notebooks: profile, watch, read and compare runs.

Importing it loads neither torch nor anything that draws.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .reports.comparison.comparing import Comparing
    from .reports.run import Run

__all__ = ["compare", "profile", "read_run", "watch"]

OPTIMIZERS = "adamw,sm3,lamb16,sgd-sai"


def profile(
    models: str | Sequence[str],
    optimizers: str | Sequence[str] = OPTIMIZERS,
    *,
    out: str | Path | None = None,
    timeout: float | None = None,
    jobs: int | None = None,
    force: bool = False,
    anonymous: bool = False,
    baseline: str | None = None,
    **options: Any,
) -> "Run":
    """Profile optimizers on models as the command does, and return the run.

    `models` and `optimizers` are names with options, in a list or as the command line takes them.
    `options` are other fields of `optprof.scenarios.Scenario`: device, dtype, batch_size and so on.
    `jobs` simulations run at once, by default as many as there are cores and memory for. `out` is a
    folder for the run, `anonymous` leaves out the machine and every path. `baseline` names the
    optimizer that reports compare the others with: by default adamw, else adam, else the first.

    A scenario that fails is a record with its outcome. Raises ValueError for a request that cannot
    be met, FileExistsError for a folder that holds a run, or other files unless `force` is given.
    """
    from .profiler.records.store import RunStore
    from .profiler.running.jobs import require_jobs, usual_jobs
    from .profiler.running.launching import ONE_NODE, require_nodes
    from .profiler.running.plan import comparison, plan, require_timeout
    from .profiler.running.runner import run as run_all
    from .profiler.safety.disk import require_own_folder
    from .reports.arithmetic.savings import require_baseline
    from .reports.run import Run

    run = Run.temporary() if out is None else Run(folder=Path(out))
    run.baseline = baseline
    require_timeout(timeout)
    jobs = usual_jobs() if jobs is None else require_jobs(jobs)
    scenarios = plan(comparison(models, optimizers, **options))
    if baseline is not None:
        require_baseline(baseline, [scenario.optimizer for scenario in scenarios])
    require_nodes(scenarios, ONE_NODE)
    require_own_folder(run.where, "records.jsonl", force=force)
    store = RunStore.create(run.where)
    store.anonymous = anonymous
    try:
        run_all(
            scenarios,
            store,
            lambda _place, _scenario: None,
            jobs=jobs,
            timeout=timeout,
            force=force,
        )
        run.records = store.read_standing()
    finally:
        store.close()
    return run


@contextmanager
def watch(
    optimizer: "torch.optim.Optimizer",
    *others: "torch.optim.Optimizer",
    model: "torch.nn.Module | str | Sequence[torch.nn.Module | str | None] | None" = None,
    batch_size: int | None = None,
    sequence_length: int | None = None,
    out: str | Path | None = None,
    anonymous: bool = False,
    force: bool = False,
) -> "Iterator[Run]":
    """Watch the training loop in a `with` block: bytes of state, times of steps, peaks of memory.

    A loop with several optimizers gives them all, and a list with the `model` of each if they
    differ. `out` is a folder whose run gets the records; a folder with other files and no run is
    refused with FileExistsError unless `force` is given. `anonymous` leaves out the machine and
    every path.

    Yields a run, which has a record of each optimizer once the block has ended, also by an
    exception. `optprof.profiler.measuring.watching.Watch` says what is read and what is refused.
    Raises OSError if the folder cannot be written.
    """
    from .profiler.measuring.watching import Watch
    from .reports.run import Run

    run = Run() if out is None else Run.going_on(Path(out), force=force)
    run.anonymous = anonymous
    with Watch(
        optimizer,
        *others,
        model=model,
        batch_size=batch_size,
        sequence_length=sequence_length,
        keep=run.add,
    ):
        yield run


def read_run(folder: str | Path) -> "Run":
    """Read the run in a folder; raise FileNotFoundError if it holds none."""
    from .reports.run import Run

    return Run.read(folder)


def compare(
    before: str | Path,
    after: str | Path,
    *more: str | Path,
    threshold: str = "5%",
    across_machines: bool = False,
) -> "Comparing":
    """Compare runs, or folders of runs, with the first one, as the command does.

    A notebook shows the tables; `compared` and `more` have the changes of each scenario. Raises
    ValueError for a run that cannot be read, FileNotFoundError for a folder without runs.
    """
    from .reports.comparison.comparing import Comparing

    return Comparing.of(
        Path(before),
        Path(after),
        [],
        more=[Path(run) for run in more],
        threshold=threshold,
        across_machines=across_machines,
    )
