"""A comparison on the terminal: a small table a scenario, readable at 80 columns, and what the
gates stop below it.
"""

from collections.abc import Sequence
from typing import TextIO

from rich.table import Table as Grid
from rich.text import Text

from ..streams import console_on
from ..tables.table import Table
from .compare import Compared
from .gate import Offence
from .tables import (
    Names,
    by_scenario,
    comparison_table,
    offence_table,
    one_side_table,
    remarks,
    summary,
    unfinished_table,
)

STYLES = {"regressed": "bold red", "improved": "green"}


def render_comparison(
    compared: Compared,
    stopped: Sequence[Offence],
    output: TextIO,
    *,
    only_regressed: bool = False,
    width: int | None = None,
) -> None:
    """Print the comparison, then the rows that the gates stop."""
    console = console_on(output, width=width)
    names = Names.of(compared.records)
    if names.common:
        console.print(Text(names.common, style="dim"))
        console.print()
    for name, table in by_scenario(
        comparison_table(compared, names, only_regressed=only_regressed)
    ):
        console.print(_grid(name, table))
        console.print()
    rest = (
        []
        if only_regressed
        else [
            ("on one side only", one_side_table),
            ("without a result on both sides", unfinished_table),
        ]
    )
    for title, make in rest:
        found = make(compared, names)
        if found.rows:
            console.print(_grid(title, found))
            console.print()
    for line in (*remarks(compared), summary(compared)):
        console.print(Text(line, style="dim"))
    if stopped:
        console.print()
        console.print(Text("stopped by a gate", style="bold"))
        for line in offence_lines(offence_table(stopped, names)):
            console.print(Text(line, style="bold red"), soft_wrap=True)


def offence_lines(table: Table) -> list[str]:
    """What the gates stop, a line each: state>0: gpt2 · adamw: state 949 MiB → 1.158 GiB, 1.25
    times.
    """
    return [
        f"{gate}: {name}: {figure} {before} → {after}, {ratio}"
        for gate, name, figure, before, after, _, ratio, _ in _texts(table)
    ]


def _texts(table: Table) -> list[tuple[str, ...]]:
    return [tuple(cell.text for cell in row) for row in table.rows]


def _grid(title: str, table: Table) -> Grid:
    grid = Grid(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for number, name in enumerate(table.head):
        figures = bool(table.rows) and table.rows[0][number].number
        grid.add_column(
            Text(name), justify="right" if figures else "left", no_wrap=figures, overflow="fold"
        )
    for row in table.rows:
        style = next((shade for word, shade in STYLES.items() if row[-1].text.startswith(word)), "")
        grid.add_row(*(Text(cell.text, style=style) for cell in row))
    return grid
