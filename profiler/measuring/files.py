"""Files next to a record; a failed write costs only that file."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from optprof.scenarios import Scenario

from ..records.record import Record
from ..records.store import RunStore, file_name
from ..safety import disk

_KINDS = ("snapshots", "tensorboard", "timelines")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Paths of the files to write next to a record; None writes no such file.

    `snapshot` is a pickle of CUDA's allocator for memory_viz, written after a success; `when_full`
    one written when memory runs out. `trace` is a folder for torch.profiler's trace of a few
    iterations. All are below `run`, the run's folder, and no link is followed there. `lost` pairs
    each file that could not be written with the reason.
    """

    run: Path | None = None
    snapshot: Path | None = None
    when_full: Path | None = None
    trace: Path | None = None
    lost: list[tuple[Path, str]] = field(default_factory=list)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Write a file inside; an OSError, or the ValueError of a link, only goes into `lost`."""
        try:
            yield
        except (OSError, ValueError) as error:
            # The log may be on the same disk.
            with suppress(OSError, ValueError):
                traceback.print_exc()
            named = Path(getattr(error, "filename", None) or path)
            inside = self.run is not None and named.is_relative_to(self.run)
            self.lost.append(
                (named if inside else path, getattr(error, "strerror", None) or str(error))
            )


def require_iterations(scenarios: Iterable[Scenario], *, snapshots: bool, traces: bool) -> None:
    """Raise ValueError for a snapshot or a trace of a measured training run with accumulation.

    Such a run has no watched iterations.
    """
    devices = {scenario.device for scenario in scenarios if scenario.accumulate is not None}
    if traces and devices - {"sim"}:
        raise ValueError(
            "a training run with --accumulate has no trace; leave out --trace, or simulate it with"
            " --device sim"
        )
    if snapshots and "cuda" in devices:
        raise ValueError(
            "a training run with --accumulate has no snapshot; leave out --snapshot, or simulate it"
            " with --device sim"
        )


def files_for(
    store: RunStore, scenario: Scenario, *, snapshots: bool = False, traces: bool = False
) -> Files:
    """Return the paths for one scenario: a snapshot and a trace if requested.

    On CUDA the path of an out-of-memory snapshot is always set.
    """
    folder, name, on_cuda = store.folder, file_name(scenario), scenario.device == "cuda"
    return Files(
        run=folder,
        snapshot=store.snapshot_path(scenario) if snapshots and on_cuda else None,
        when_full=folder / "snapshots" / f"{name}-out-of-memory.pickle" if on_cuda else None,
        trace=folder / "tensorboard" / name if traces else None,
    )


def files_of(store: RunStore, record: Record) -> list[Path]:
    """Return the files that belong only to this record, the largest first."""
    name = file_name(record.scenario)
    places = [place for kind in _KINDS for place in (store.folder / kind).glob(f"{name}*")]
    paths = [path for place in places for path in (place.glob("*") if place.is_dir() else (place,))]
    if record.log is not None:
        paths.append(store.folder / record.log)
    own = [path for path in paths if path.is_file() and not _is_behind_link(path, store.folder)]
    return sorted(own, key=lambda path: path.stat().st_size, reverse=True)


def _is_behind_link(path: Path, folder: Path) -> bool:
    try:
        disk.require_no_link(path, below=folder)
    except ValueError:
        return True
    return False
