"""optprof list: the names that a user can give, with a few words on each."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Annotated

import typer

from optprof.reports.streams import wrapped

from .names import choices

Row = tuple[str, ...]
# Columns that may stand before wrapped text.
_MOST_INDENT = 24
_KINDS = ("models", "optimizers", "accumulations", "gpus", "suites")


def list_names(
    what: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help=f"One of {', '.join(_KINDS)}.", autocompletion=choices(_KINDS)
        ),
    ],
) -> None:
    """List the names of models, optimizers, ways to accumulate, GPUs or suites."""
    print("\n".join(listing(what)))


def listing(what: str) -> Iterator[str]:
    """Return the lines of a listing, in columns; raise ValueError for an unknown one."""
    if what not in _LISTINGS:
        *names, last = _KINDS
        raise ValueError(f"nothing to list under {what!r}; ask for {', '.join(names)} or {last}")
    sides, rows = _LISTINGS[what]
    return _columns(sides, list(rows()))


def _columns(sides: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the rows as lines, each column as wide as its longest cell.

    `sides` has < for each column set left, and > for each set right. On a terminal the last column
    is wrapped, below the first where the others leave no room.
    """
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    *others, _ = (width + 2 for width in widths)
    indent = sum(others) if sum(others) <= _MOST_INDENT else widths[0] + 2
    for row in rows:
        line = "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        )
        yield wrapped(line.rstrip(), indent)


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
