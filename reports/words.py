"""Words: what records, devices and phases are called, the same in pictures, pages and on the
terminal.
"""

from collections.abc import Iterable, Mapping, Sequence

from optprof.profiler.records.record import Outcome, Record

from .units import percent_text

# Whether a training step fits on a GPU, in a cell.
FITS, TIGHT, UNSURE, FAILS = "✓", "≈", "?", "✗"
DEVICES: Mapping[str, str] = {"sim": "simulated CUDA", "cpu": "CPU", "cuda": "CUDA"}
PLACES: Mapping[str, str] = {"sim": "for CUDA", "cpu": "on CPU", "cuda": "on CUDA"}
# An outcome as a verb, after the name of an optimizer.
OUTCOMES: Mapping[Outcome, str] = {
    "ok": "kept no state",
    "out-of-memory": "ran out of memory",
    "failed": "failed",
    "killed": "was killed",
    "timeout": "took too long",
}


def category_name(category: str) -> str:
    """A category of bytes: parameters, optimizer state."""
    plurals = {"parameter", "buffer", "gradient", "activation", "workspace"}
    if category == "temporary":
        return "temporaries"
    return category.replace("_", " ") + ("s" if category in plurals else "")


def phase_name(phase: str | None) -> str:
    """A phase: zero grad; empty for none."""
    return (phase or "").replace("_", " ")


def origin_text(record: Record) -> str:
    """The record's origin, and what an estimate stands on: estimated from 31.2 %."""
    share = record.measured_share
    return record.origin + (
        f" from {percent_text(share, 1)}" if record.origin == "estimated" and share else ""
    )


def warning_lines(records: Iterable[Record]) -> list[str]:
    """List what spoils measurements and counts: adamw on gpt2 (CPU, loop): other processes took 40
    % of ...
    """
    found: dict[str, list[str]] = {}
    for record in records:
        for warning in warnings_of(record):
            found.setdefault(
                f"{record.scenario.model} ({conditions(record)}): {warning}", []
            ).append(record.scenario.optimizer)
    return [f"{listed(list(dict.fromkeys(names)))} on {where}" for where, names in found.items()]


def warnings_of(record: Record) -> tuple[str, ...]:
    """The record's warnings, of its counts and of what was watched, and what of it was not kept."""
    watched = record.watched.warnings if record.watched else ()
    return record.warnings + watched + tuple(f"not kept: {lost}" for lost in record.lost)


def conditions(record: Record) -> str:
    """Device and implementation of a record: CPU, loop."""
    return f"{DEVICES[record.scenario.device]}, {record.scenario.implementation}"


def clock_name(clock: str) -> str:
    """What tells a time: a device's clock, or an estimate for a GPU of that name."""
    return f"on {DEVICES[clock]}" if clock in DEVICES else f"estimated for {clock}"


def source_text(record: Record) -> str:
    """Where a record comes from: simulated for CUDA; estimated from 31.2 % on CPU."""
    return f"{origin_text(record)} {PLACES[record.scenario.device]}"


def shared(texts: Iterable[str]) -> str | None:
    """The text that all of them are, None where they differ."""
    different = set(texts)
    return different.pop() if len(different) == 1 else None


def listed(words: Sequence[str], most: int = 4) -> str:
    """A list in a sentence: a, b and c; a number of them where they are many."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
