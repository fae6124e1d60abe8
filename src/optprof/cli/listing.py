"""Listings: the names that a user can give, with a few words on each."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

from optprof import optimizers

Row = tuple[str, ...]


def listing(what: str) -> Iterator[str]:
    """The lines on the models, optimizers and so on that have a name here, in columns; ValueError
    for anything else.
    """
    if what not in _LISTINGS:
        raise ValueError(
            f"nothing to list under {what!r}; ask for {', '.join([*_LISTINGS][:-1])} or"
            f" {[*_LISTINGS][-1]}"
        )
    sides, rows = _LISTINGS[what]
    return _columns(sides, list(rows()))


def _columns(sides: str, rows: Sequence[Row]) -> Iterator[str]:
    """The rows as lines, each column as wide as its longest cell; `sides` has < for a column set
    left, and > for right.
    """
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    for row in rows:
        yield "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()


def _models() -> Iterator[Row]:
    from optprof.scenarios import models

    for name in models.available():
        entry = models.describe(name)
        yield name, f"{entry.parameter_count if entry else 0:,}", "parameters"


def _optimizers() -> Iterator[Row]:

    for name in optimizers.available():
        try:
            found = optimizers.describe(name)
        except ValueError as error:
            # Another package adds it and cannot load it; the others are listed all the same.
            yield name, str(error)
            continue
        yield name, found.summary
        yield "", f"state: {found.state}"


def _accumulations() -> Iterator[Row]:
    from optprof.optimizers import accumulation

    for name in accumulation.available():
        found = accumulation.describe(name)
        yield name, found.summary
        yield "", f"state: {found.state}"


def _gpus() -> Iterator[Row]:
    from optprof.scenarios import hardware

    for gpu in map(hardware.describe, hardware.available()):
        yield (
            gpu.name,
            gpu.title,
            f"{gpu.memory_bytes / 2**30:.2f} GiB",
            f"{gpu.bandwidth / 1e9:,.0f} GB/s",
            ", ".join(gpu.rates),
        )


def _suites() -> Iterator[Row]:
    from optprof.scenarios import suites

    for suite in map(suites.load, suites.available()):
        yield suite.name, suite.description


_LISTINGS: dict[str, tuple[str, Callable[[], Iterator[Row]]]] = {
    "models": ("<><", _models),
    "optimizers": ("<<", _optimizers),
    "accumulations": ("<<", _accumulations),
    "gpus": ("<<>><", _gpus),
    "suites": ("<<", _suites),
}
