"""What a measurement leaves beside its record, where in the run's folder that goes, and what leaves nothing."""

from collections.abc import Iterable

from scenarios import Scenario

from ..measuring.files import Files
from ..store import RunStore, file_name


def require_iterations(scenarios: Iterable[Scenario], *, snapshots: bool, traces: bool) -> None:
    """ValueError where a snapshot or a trace is asked of a course, which has no iterations that are watched."""
    devices = {scenario.device for scenario in scenarios if scenario.accumulate is not None}
    if traces and devices - {"sim"}:
        raise ValueError("a course of training (--accumulate) leaves no trace; leave out --trace, or simulate it with --device sim")
    if snapshots and "cuda" in devices:
        raise ValueError("a course of training (--accumulate) leaves no snapshot; leave out --snapshot, or simulate it with --device sim")


def files_beside(store: RunStore, scenario: Scenario, *, snapshots: bool = False, traces: bool = False) -> Files:
    """The paths for one scenario: a snapshot and a trace where they are asked for, on CUDA one of memory that has run out in any case."""
    folder, name, on_cuda = store.folder, file_name(scenario), scenario.device == "cuda"
    return Files(
        snapshot=store.snapshot_path(scenario) if snapshots and on_cuda else None,
        when_full=folder / "snapshots" / f"{name}-out-of-memory.pickle" if on_cuda else None,
        trace=folder / "tensorboard" / name if traces else None,
    )
