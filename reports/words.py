"""Words: names of records, devices and phases for pictures, pages and the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from optprof.profiler.records.record import Outcome, Record

from .units import percent_text

# Signs for the answers to whether a training step fits on a GPU.
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
    unlike = {
        "temporary": "temporaries",
        "gathered": "gathered parameters",
        "communication": "communication buffers",
    }
    if category in unlike:
        return unlike[category]
    return category.replace("_", " ") + ("s" if category in plurals else "")


def phase_name(phase: str | None) -> str:
    """A phase: zero grad; empty for none."""
    return (phase or "").replace("_", " ")


def origin_text(record: Record) -> str:
    """The record's origin, and the share behind an estimate: estimated from 31.2 %."""
    share = record.measured_share
    return record.origin + (
        f" from {percent_text(share, 1)}" if record.origin == "estimated" and share else ""
    )


def warning_lines(records: Iterable[Record]) -> list[str]:
    """The warnings of the records: adamw on gpt2 (CPU, loop): other processes took 40 % of ..."""
    names: dict[str, list[str]] = {}
    for record in records:
        for warning in warnings_of(record):
            text = f"{record.scenario.model} ({conditions(record)}): {warning}"
            names.setdefault(text, []).append(record.scenario.optimizer)
    return [f"{listed(list(dict.fromkeys(each)))} on {text}" for text, each in names.items()]


def warnings_of(record: Record) -> tuple[str, ...]:
    """The warnings on the record's counts and times, and its data that was not kept."""
    watched = record.watched.warnings if record.watched else ()
    return record.warnings + watched + tuple(f"not kept: {lost}" for lost in record.lost)


def conditions(record: Record) -> str:
    """Device and implementation of a record: CPU, loop."""
    return f"{DEVICES[record.scenario.device]}, {record.scenario.implementation}"


def clock_name(clock: str) -> str:
    """The source of a time: a device's clock, or an estimate for a GPU of that name."""
    return f"on {DEVICES[clock]}" if clock in DEVICES else f"estimated for {clock}"


def source_text(record: Record) -> str:
    """The source of a record: simulated for CUDA; estimated from 31.2 % on CPU."""
    return f"{origin_text(record)} {PLACES[record.scenario.device]}"


def shared(texts: Iterable[str]) -> str | None:
    """The text that all of them equal; None where they differ."""
    different = set(texts)
    return different.pop() if len(different) == 1 else None


def listed(words: Sequence[str], most: int = 4) -> str:
    """A list in a sentence: a, b and c; from `most` on the number of the others."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
