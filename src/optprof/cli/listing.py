"""optprof list: the names that a user can give, with a few words on each."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Annotated

import typer

Row = tuple[str, ...]


def list_names(
    what: Annotated[
        str,
        typer.Argument(metavar="models|optimizers|accumulations|gpus|suites", help="What to list."),
    ],
) -> None:
    """List the models, optimizers, ways to accumulate, GPUs or suites that have a name here."""
    print("\n".join(listing(what)))


def listing(what: str) -> Iterator[str]:
    """Return the lines of a listing, in columns; raise ValueError for an unknown one."""
    if what not in _LISTINGS:
        *names, last = _LISTINGS
        raise ValueError(f"nothing to list under {what!r}; ask for {', '.join(names)} or {last}")
    sides, rows = _LISTINGS[what]
    return _columns(sides, list(rows()))


def _columns(sides: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the rows as lines, each column as wide as its longest cell.

    `sides` has < for each column set left, and > for each set right.
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
    from optprof import optimizers

    for name in optimizers.available():
        try:
            entry = optimizers.describe(name)
        except ValueError as error:
            # Another package adds it and cannot load it; the others are still listed.
            yield name, str(error)
            continue
        yield name, entry.summary
        yield "", f"state: {entry.state}"


def _accumulations() -> Iterator[Row]:
    from optprof.optimizers import accumulation

    for name in accumulation.available():
        entry = accumulation.describe(name)
        yield name, entry.summary
        yield "", f"state: {entry.state}"


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
