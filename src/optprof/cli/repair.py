"""optprof repair: set aside the damaged parts of a run."""

from .options import RunFolder
from .running import run_folder


def repair(run: RunFolder) -> None:
    """Set aside the unreadable parts of a run: lines in records.damaged, timelines as *.damaged."""
    from optprof.profiler.records.store import RunStore

    print("\n".join(RunStore.open(run_folder(run)).repair()) or "nothing is damaged")
