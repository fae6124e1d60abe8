"""Files beside a record: where in the run's folder they go, which scenarios leave none, and how
they give way to the record.
"""

from collections.abc import Iterable
from pathlib import Path

from optprof.scenarios import Scenario

from ..measuring.files import Files
from ..records.record import Record
from ..records.store import RunStore, file_name
from ..safety import disk

_KINDS = ("snapshots", "tensorboard", "timelines")


def require_iterations(scenarios: Iterable[Scenario], *, snapshots: bool, traces: bool) -> None:
    """ValueError where a snapshot or a trace is asked of a course, which has no iterations that are
    watched.
    """
    devices = {scenario.device for scenario in scenarios if scenario.accumulate is not None}
    if traces and devices - {"sim"}:
        raise ValueError(
            "a course of training (--accumulate) leaves no trace; leave out --trace, or simulate it"
            " with --device sim"
        )
    if snapshots and "cuda" in devices:
        raise ValueError(
            "a course of training (--accumulate) leaves no snapshot; leave out --snapshot, or"
            " simulate it with --device sim"
        )


def files_beside(
    store: RunStore, scenario: Scenario, *, snapshots: bool = False, traces: bool = False
) -> Files:
    """The paths for one scenario: a snapshot and a trace where they are asked for, on CUDA one of
    memory that has run out in any case.
    """
    folder, name, on_cuda = store.folder, file_name(scenario), scenario.device == "cuda"
    return Files(
        run=folder,
        snapshot=store.snapshot_path(scenario) if snapshots and on_cuda else None,
        when_full=folder / "snapshots" / f"{name}-out-of-memory.pickle" if on_cuda else None,
        trace=folder / "tensorboard" / name if traces else None,
    )


def written_beside(store: RunStore, record: Record) -> list[Path]:
    """The files that belong to a record alone, the largest first."""
    name = file_name(record.scenario)
    places = [place for kind in _KINDS for place in (store.folder / kind).glob(f"{name}*")]
    found = [path for place in places for path in (place.glob("*") if place.is_dir() else (place,))]
    if record.log is not None:
        found.append(store.folder / record.log)
    own = [path for path in found if path.is_file() and not _is_behind_link(path, store.folder)]
    return sorted(own, key=lambda path: path.stat().st_size, reverse=True)


def _is_behind_link(path: Path, folder: Path) -> bool:
    try:
        disk.require_no_link(path, below=folder)
    except ValueError:
        return True
    return False
