"""Planned: the scenarios that a run's commands still have to record.

`planned.json` lies in a run's folder while a command records scenarios there, and stays behind if
the command is interrupted. It has an entry for each such command: a resumed command replaces its
own, another command adds one. Records that come from elsewhere, such as `watch`, change nothing.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from optprof.scenarios import schema
from optprof.scenarios.schema import Name, Texts
from optprof.scenarios.spec import Scenario

from ..safety import disk
from .privacy import disclosed_command
from .record import Record
from .store import RunStore, file_name

NAME = "planned.json"
SCHEMA = 1
# 100,000 scenarios with names of 100 letters.
_MOST_BYTES = 1 << 24


class UnfinishedWarning(UserWarning):
    """Scenarios of a run are missing, because it was interrupted or is still going on."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A command, and the scenarios that it means to record, by the names of their files.

    The command is empty for a user's program, which cannot be resumed.
    """

    command: Texts
    scenarios: Annotated[tuple[Name, ...], Meta(max_length=schema.MOST_RECORDS)]


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """The number of scenarios without a record, of all; and the commands that go on with them."""

    missing: int
    planned: int
    commands: tuple[tuple[str, ...], ...] = ()


def begin(
    folder: Path, scenarios: Iterable[Scenario], command: Sequence[str], *, anonymous: bool = False
) -> None:
    """Note the scenarios that a command is going to record; a full disk costs only the note."""
    key = _key(folder, command, anonymous=anonymous)
    plan = Plan(command=key, scenarios=tuple(map(file_name, scenarios)))
    _write(folder, [*_others(folder, plan.command, plan.scenarios), plan])


def end(folder: Path, command: Sequence[str], *, anonymous: bool = False) -> None:
    """Drop the note of a command that has recorded all its scenarios."""
    if (folder / NAME).exists():
        _write(folder, _others(folder, _key(folder, command, anonymous=anonymous)))


def unfinished(folder: Path, records: Iterable[Record]) -> Unfinished | None:
    """Return what is missing from a run; None if nothing is, or if nothing is noted."""
    plans = _read(folder)
    if not plans:
        return None
    recorded = {file_name(record.scenario) for record in records}
    waiting = [plan for plan in plans if not recorded.issuperset(plan.scenarios)]
    planned = {name for plan in waiting for name in plan.scenarios}
    if not waiting:
        return None
    return Unfinished(
        missing=len(planned - recorded),
        planned=len(planned | recorded),
        # Readers run what a page advises; a stranger's file advises nothing but optprof.
        commands=tuple(plan.command for plan in waiting if plan.command[:1] == ("optprof",)),
    )


def _key(folder: Path, command: Sequence[str], *, anonymous: bool) -> tuple[str, ...]:
    """Return the command with its folder and without --resume, empty for a user's program."""
    if list(command[:1]) != ["optprof"]:
        return ()
    words = [word for word in command if word != "--resume"]
    if not any(word == "--out" or word.startswith("--out=") for word in words):
        words += ["--out", str(folder)]
    return tuple(disclosed_command(words, anonymous=anonymous))


def _others(folder: Path, command: tuple[str, ...], scenarios: Collection[str] = ()) -> list[Plan]:
    """Return the plans of other commands that lack more than these scenarios.

    A command that is resumed with another option, as -q, takes over what it has planned before.
    """
    others = [plan for plan in _read(folder) if plan.command != command]
    if not others:
        return []
    recorded = {*scenarios}
    with suppress(OSError, ValueError):
        recorded |= {file_name(record.scenario) for record in RunStore(folder).read()}
    return [plan for plan in others if not recorded.issuperset(plan.scenarios)]


def _read(folder: Path) -> list[Plan]:
    """Return the noted plans; a note that cannot be read is no note."""
    try:
        with disk.open_to_read(folder / NAME, below=folder) as file:
            data = schema.parse_json(file.read(_MOST_BYTES))
        schema.require_version(data.get("schema"), SCHEMA, "schema")
        return [schema.read(Plan, plan) for plan in data["plans"]]
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return []


def _write(folder: Path, plans: Sequence[Plan]) -> None:
    path = folder / NAME
    with suppress(OSError, ValueError):
        if plans:
            data = {"schema": SCHEMA, "plans": [asdict(plan) for plan in plans]}
            disk.write_text(path, json.dumps(data, indent=1) + "\n", below=folder)
        else:
            disk.remove(path)
