"""Pages of the table of optimizers: Markdown, a page to sort and filter, and CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optprof.profiler.safety.plain import spreadsheet_text
from optprof.reports import html, markdown
from optprof.reports.document import Document, Note, Section
from optprof.reports.tables.table import Cell, Table, bytes_cell, number_cell
from optprof.reports.units import NOTHING, per_parameter_text, seconds_text

from .checks import CHECKS
from .rows import CPU_MODEL, FIRST_GPU, MODELS, SECOND_GPU, Row

# Letters of a failure that a cell has room for.
MOST_LETTERS = 40
TITLE = "Optimizers: memory, time and compatibility"
SAYS = (
    "State, peak and phase are simulated for CUDA, fp32, batch 1, and 1,024 tokens for language"
    f" models. The step on {FIRST_GPU} and {SECOND_GPU} is estimated. The step of {CPU_MODEL} is"
    " measured on two CPU cores, with the optimizer's default implementation there. The cores were"
    " shared with other work: factors below 1.5 say little."
)
CHECKED = (
    "FSDP2 trains a small model on two CPU ranks, torch.compile compiles the step with aot_eager;"
    " yes means the weights of plain training, in parts means with graph breaks, which torch puts"
    " into its own optimizers. The loss is that of a small GPT at the rate in"
    " tests/bench/training.py."
)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write optimizers.md, optimizers-sortable.html and optimizers.csv; `make results` calls it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [data_of(row) for row in rows]
    page = Document(
        title=TITLE,
        context=(SAYS, CHECKED),
        sections=(Section("Optimizers", _blocks(rows), name="optimizers"),),
        rows=data,
    )
    (folder / "optimizers-sortable.html").write_text(html.render(page))
    sections = tuple(Section(f"On {model}", [table_of(rows, model)]) for model in MODELS)
    head = f"# {TITLE}\n\n{SAYS}\n\n{CHECKED} [Page to sort and filter](optimizers-sortable.html)"
    files = f", [CSV](optimizers.csv). `make results` takes all of it again ({len(rows)} rows).\n\n"
    text = markdown.render(Document(sections=sections))
    (folder / "optimizers.md").write_text(head + files + text)
    with (folder / "optimizers.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(data[0])
        for each in data:
            values = each.values()
            writer.writerow(
                [spreadsheet_text(one) if isinstance(one, str) else one for one in values]
            )


def _blocks(rows: Sequence[Row]) -> list[Note | Table]:
    return [block for model in MODELS for block in (Note(model, "heading"), table_of(rows, model))]


def table_of(rows: Sequence[Row], model: str) -> Table:
    """Return the table of one model; the first one also has what does not depend on the model."""
    head = ("optimizer", "B/param", "state", "peak", "in", f"on {FIRST_GPU}", f"on {SECOND_GPU}")
    if model == MODELS[0]:
        head += (f"step of {CPU_MODEL} on the CPU", *CHECKS, "remark")
    return Table(
        head=head,
        rows=tuple(_cells(row, model) for row in rows),
        title=model,
        sortable=True,
    )


def _cells(row: Row, model: str) -> tuple[Cell, ...]:
    cost = row.costs.get(model)
    cells = (
        Cell(text=row.optimizer),
        number_cell(cost.bytes_per_parameter if cost else None, per_parameter_text),
        bytes_cell(cost.state if cost else None),
        bytes_cell(cost.peak if cost else None, cost.peak_upper if cost else None),
        Cell(text=(cost.phase if cost else "") or NOTHING),
        *(_estimate(cost.seconds.get(gpu) if cost else None) for gpu in (FIRST_GPU, SECOND_GPU)),
    )
    if model != MODELS[0]:
        return cells
    words = tuple(_words(row.words.get(check, NOTHING)) for check in CHECKS)
    return (
        *cells,
        number_cell(row.cpu_seconds, seconds_text),
        *words,
        _words(row.remark or NOTHING),
    )


def _words(text: str) -> Cell:
    """Return a failure by its kind; the whole line is behind it (hover), and in the CSV."""
    short = text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS].rsplit(' ', 1)[0]} …"
    return Cell(text=short, exact=text if short != text else "")


def _estimate(seconds: float | None) -> Cell:
    return number_cell(seconds, lambda value: f"~{seconds_text(value)}")


def data_of(row: Row) -> dict[str, Any]:
    """Return exact bytes and unrounded seconds by column; None for what is not known."""
    data: dict[str, Any] = {"optimizer": row.optimizer}
    for model in MODELS:
        cost = row.costs.get(model)
        data |= {
            f"{model} bytes a parameter": cost and cost.bytes_per_parameter,
            f"{model} state bytes": cost and cost.state,
            f"{model} peak bytes": cost and cost.peak,
            f"{model} peak upper bytes": cost and cost.peak_upper,
            f"{model} phase": cost and cost.phase,
            f"{model} {FIRST_GPU} seconds": cost and cost.seconds.get(FIRST_GPU),
            f"{model} {SECOND_GPU} seconds": cost and cost.seconds.get(SECOND_GPU),
        }
    data[f"{CPU_MODEL} cpu seconds"] = row.cpu_seconds
    data[f"{CPU_MODEL} cpu implementation"] = row.implementation
    data |= {check: row.words.get(check) for check in CHECKS}
    return data | {"remark": row.remark}
