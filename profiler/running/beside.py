"""What a measurement leaves beside its record, and where in the run's folder that goes."""

from scenarios import Scenario

from ..measuring.files import Files
from ..store import RunStore, file_name


def files_beside(store: RunStore, scenario: Scenario, *, snapshots: bool = False, traces: bool = False) -> Files:
    """The paths for one scenario: a snapshot and a trace where they are asked for, on CUDA one of memory that has run out in any case."""
    folder, name, on_cuda = store.folder, file_name(scenario), scenario.device == "cuda"
    return Files(
        snapshot=store.snapshot_path(scenario) if snapshots and on_cuda else None,
        when_full=folder / "snapshots" / f"{name}-out-of-memory.pickle" if on_cuda else None,
        trace=folder / "tensorboard" / name if traces else None,
    )
