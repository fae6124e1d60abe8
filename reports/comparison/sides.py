"""The sides of a comparison: the records of a run, or of all runs in a folder."""

import math
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path

from optprof.profiler.records.record import Environment, Machine, Memory, Record, Watched
from optprof.profiler.records.store import RunStore, by_place, scenario_key
from optprof.scenarios import schema

from ..summary import NO_SPLITS


@dataclass(frozen=True, kw_only=True)
class Side:
    """The records of a side, the newest of each scenario last, and its damage."""

    records: Sequence[Record]
    damage: tuple[str, ...] = ()


def read_side(path: Path) -> Side:
    """Read a run, or all runs directly in a folder; FileNotFoundError for a folder without any.

    A run that cannot be read at all raises ValueError or OSError; among other runs it is damage.
    """
    if may_hold_run(path):
        store = RunStore(path)
        return Side(records=by_place(store.read(lean)), damage=store.damage)
    runs: dict[str, list[Record]] = {}
    damage: list[str] = []
    for folder in runs_under(path):
        store = RunStore(folder)
        try:
            runs[folder.name] = store.read(partial(lean, with_time=True))
            damage += (f"{folder.name}/{each}" for each in store.damage)
        except (OSError, ValueError) as error:
            damage.append(str(error).replace(f"{path}{os.sep}", ""))
    damage += _unreadable_times(runs) if len(runs) > 1 else []
    return Side(records=_in_time(runs.values()), damage=tuple(damage))


def lean(record: Record, *, with_time: bool = False) -> Record:
    """Return the parts of a record that a comparison reads: two runs of 100,000 would take 2 GB.

    `with_time` keeps the time, which puts the records of several runs in order.
    """
    memory, watched, environment = record.memory, record.watched, record.environment
    if memory is not None:
        memory = Memory(**{**vars(memory), **NO_SPLITS, "parameters_by_dtype": {}})
    dropped = {
        "memory": memory,
        "times": {phase: array("d", samples) for phase, samples in (record.times or {}).items()},
        "warmup": None,
        "watched": watched and Watched(warnings=watched.warnings),
        "course": None,
        "environment": _shared_environment(
            environment.time if with_time else None,
            # A seed of None marks the record of a user's training loop.
            environment.seed and 0,
            environment.threads,
            environment.machine,
            tuple(environment.versions.items()),
            environment.git_commit,
        ),
    }
    return Record(**{**vars(record), **dropped})


@lru_cache(maxsize=1_000)
def _shared_environment(
    time: str | None,
    seed: int | None,
    threads: int | None,
    machine: Machine | None,
    versions: tuple[tuple[str, str], ...],
    git_commit: str | None,
) -> Environment:
    """Return one environment for all records with these values."""
    return Environment(
        time=time,
        seed=seed,
        threads=threads,
        machine=machine,
        versions=dict(versions),
        git_commit=git_commit,
    )


def runs_under(path: Path) -> list[Path]:
    """The folders of runs directly in a folder, each once; FileNotFoundError for none."""
    folders = sorted(path.iterdir(), reverse=True) if path.is_dir() else []
    # A link to another run of the folder, as "latest", adds no run.
    runs = {folder.resolve(): folder for folder in folders if may_hold_run(folder)}
    if not runs:
        raise FileNotFoundError(
            f"no run in {path}; name the folder of a run, such as runs/gpt2-xl, or a folder of runs"
        )
    return sorted(runs.values())


def may_hold_run(folder: Path) -> bool:
    """Return False for a folder without a run; one without read permission may hold the newest."""
    try:
        (folder / "records.jsonl").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _unreadable_times(runs: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """Name the first record of each run with an invalid time: it may be the newest of all runs."""
    for name, records in runs.items():
        for record in records:
            time = record.environment.time
            if time is not None and _moment(time) is None:
                yield (
                    f"{name}/records.jsonl: the time of a record, {schema.shown(time)}, cannot be"
                    " read"
                )
                break


def _in_time(runs: Iterable[Sequence[Record]]) -> list[Record]:
    """The records of all runs; the time of its last record in each run orders a scenario's.

    Within a run the order of the file stands: it only grows, and the clock may be set back.
    """
    grouped: dict[bytes, dict[int, list[Record]]] = {}
    for number, records in enumerate(runs):
        for record in records:
            grouped.setdefault(scenario_key(record.scenario), {}).setdefault(number, []).append(
                record
            )
    groups = (
        sorted(group.values(), key=lambda of_run: time_of(of_run[-1])) for group in grouped.values()
    )
    return [record for group in groups for of_run in group for record in of_run]


def time_of(record: Record) -> float:
    """Seconds since 1970 of the record's time; a record without one is the oldest."""
    moment = _moment(record.environment.time)
    if moment is None:
        return -math.inf
    return (
        moment.replace(tzinfo=moment.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    ).total_seconds()


def _moment(time: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(time))
    except ValueError:
        return None
