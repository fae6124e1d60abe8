"""Streams: results alone on stdout, progress and all else on stderr."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from scenarios import Scenario


@contextmanager
def results_on_stdout() -> Iterator[TextIO]:
    """The process's stdout for results alone: what anybody else prints, Python or not, goes to stderr."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout:
        os.dup2(2, 1)
        try:
            with redirect_stdout(sys.stderr):
                yield stdout
        finally:
            stdout.flush()
            os.dup2(stdout.fileno(), 1)


@contextmanager
def progress(total: int) -> Iterator[Callable[[int, "Scenario"], None]]:
    """A function that is told the place of each scenario before it runs: it moves a bar on a terminal, and prints a line elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("", total=total)

        def started(place: int, scenario: "Scenario") -> None:
            title = f"{scenario.model} {scenario.optimizer} {scenario.workload} on {scenario.device}"
            bar.update(task, completed=place, description=title)
            if not console.is_terminal:
                sys.stderr.write(f"[{place + 1}/{total}] {title}\n")

        yield started
