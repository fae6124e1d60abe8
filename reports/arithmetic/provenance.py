"""Provenance: command, versions, machine, commit, seed, time and samples of a run."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optprof.profiler.records.record import Machine, Record

from ..units import BINARY, DASH, Units, bytes_text, percent_text
from ..words import DEVICES, warning_lines
from .times import Spread

ORIGINS = {
    "measured": "read from a clock or an allocator on the machine of the run.",
    "simulated": (
        "the optimizer's own step ran at full size on tensors without data, and its allocations"
        " were replayed through a model of the CUDA caching allocator; no GPU was used."
    ),
    "estimated": (
        "timed on a part of the model, whose share is noted, and scaled up to all parameters; or,"
        " for a GPU that was not used, computed from the bytes that the step's kernels move, their"
        " launches and the host's waits."
    ),
}
ANONYMOUS = "machine, platform, commit and paths are left out"


def commands(records: Sequence[Record]) -> list[str]:
    """Return the command lines that made these records, ready for a shell."""
    return _distinct(
        shell(record.environment.command) for record in records if record.environment.command
    )


def shell(words: Iterable[str]) -> str:
    """Return the words as a line for a shell; a leading ~ is not quoted."""
    return " ".join(
        f"~/{shlex.quote(word[2:])}" if word[:2] == "~/" and word[2:] else shlex.quote(word)
        for word in words
    )


def provenance(records: Sequence[Record], units: Units = BINARY) -> list[tuple[str, str]]:
    """Return names and values of the records' provenance, without those that no record has."""
    fields: list[tuple[str, Callable[[Record], str]]] = [
        ("machine", lambda record: _machine(record.environment.machine, units)),
        ("threads", lambda record: _plain(record.environment.threads)),
        ("platform", lambda record: _plain(record.environment.platform)),
        ("Python", lambda record: _plain(record.environment.python)),
        ("versions", lambda record: _versions(record.environment.versions)),
        ("anonymous", lambda record: ANONYMOUS if record.environment.anonymous else ""),
        ("git commit", lambda record: _plain(record.environment.git_commit)),
        ("seed", lambda record: _plain(record.environment.seed)),
        (
            "steps",
            lambda record: (
                ""
                if record.is_of_own_loop
                else f"{record.scenario.steps} on {DEVICES[record.scenario.device]}"
            ),
        ),
    ]
    rows = [
        ("time (UTC)", _times(records)),
        *((name, "; ".join(_distinct(map(read, records)))) for name, read in fields),
        ("warm-up samples", _sample_counts([record.warmup for record in records])),
        ("samples kept", _sample_counts([record.times for record in records])),
        ("noise", _noise(records)),
        ("warnings", "; ".join(warning_lines(records))),
    ]
    return [(name, text) for name, text in rows if text]


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _times(records: Sequence[Record]) -> str:
    times = sorted(_distinct(_plain(record.environment.time) for record in records))
    return f"{times[0]} to {times[-1]}" if len(times) > 1 else "".join(times)


def _machine(machine: Machine | None, units: Units) -> str:
    if machine is None:
        return ""
    memory = machine.memory_bytes
    parts = [
        machine.cpu,
        f"{machine.cores} cores" if machine.cores else "",
        f"{bytes_text(memory, units)} of memory" if memory is not None else "",
        machine.gpu or "no GPU",
    ]
    return ", ".join(filter(None, parts))


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _sample_counts(times: Sequence[Mapping[str, Sequence[float]] | None]) -> str:
    """Return the number of samples of each phase in a record: step 9, forward 3 to 5."""
    counts: dict[str, list[int]] = {}
    for samples in times:
        for phase, values in (samples or {}).items():
            counts.setdefault(phase, []).append(len(values))
    spans = {phase: dict.fromkeys((min(many), max(many))) for phase, many in counts.items()}
    return ", ".join(f"{phase} {DASH.join(map(str, span))}" for phase, span in spans.items())


def _noise(records: Sequence[Record]) -> str:
    """Return how far the 95 % intervals of the step's medians reach, narrowest to widest."""
    steps = [(record.times or {}).get("step") for record in records if record.course is None]
    spreads = [Spread.of(samples) for samples in steps if samples]
    reaches = sorted(spread.reach for spread in spreads if spread.reach is not None)
    if not reaches:
        return ""
    span = dict.fromkeys(percent_text(reach, 1) for reach in (reaches[0], reaches[-1]))
    return f"95 % intervals of the step's median reach {' to '.join(span)} to the longer side"
