"""The library for programs and notebooks: profile, watch, read a run.

Importing it loads neither torch nor anything that draws.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .reports.run import Run

__all__ = ["profile", "read_run", "watch"]

OPTIMIZERS = "adamw,sm3,lamb16,sgd-sai"


def profile(
    models: str | Sequence[str],
    optimizers: str | Sequence[str] = OPTIMIZERS,
    *,
    out: str | Path | None = None,
    timeout: float | None = None,
    force: bool = False,
    anonymous: bool = False,
    **options: Any,
) -> "Run":
    """Profile optimizers on models as the command does, and return the run; `out` is a folder to
    keep it in.

    `models` and `optimizers` are names with options, in a list or as the command line takes them;
    `options` are the other fields of `profiler.running.plan.Comparison`: device, dtype, batch_size
    and so on.
    What fails is a record with its outcome. ValueError for a request that cannot be met,
    FileExistsError for a folder that holds a run, or other files unless `force` is given. What is
    `anonymous` names no machine and no path.
    """
    from .profiler.running.asking import ask, comparison
    from .reports.run import Run

    run = Run.temporary() if out is None else Run(folder=Path(out))
    asked = comparison(models, optimizers, options)
    run.records = ask(asked, run.where, timeout=timeout, force=force, anonymous=anonymous)
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
    """Watch the training loop inside a `with` block: bytes of state, times of steps, peaks of
    memory.

    A loop with several optimizers gives them all, and in a list the `model` of each where they are
    different. `out` is a folder whose run the records are added to; one that holds other files and
    no run is refused with FileExistsError unless `force` is given. What is `anonymous` names no
    machine and no path.

    The run that it gives has the records, one of each optimizer, when the block has ended, also by
    an exception. `profiler.measuring.watching.Watch` says what is read and what is refused.
    OSError when the folder cannot be written.
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
    """The run in a folder, to go on with in a notebook; FileNotFoundError where there is none."""
    from .reports.run import Run

    return Run.read(folder)
