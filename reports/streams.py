"""Streams: results alone on stdout, progress and all else on stderr; a reader may leave either."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from scenarios import Scenario


class _Pipe(io.FileIO):
    """A descriptor whose reader may be gone: what is written then is lost, and the command goes on to its end."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def survive_closed_pipes() -> None:
    """Let stdout and stderr outlive their readers, as those of `optprof list gpus | head -1` leave.

    What goes to a stream that the shell has closed, as `>&-` does, is lost. Its descriptor is taken, or
    it would become that of the next file that is opened.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            _open_on_nothing(number)
            setattr(sys, name, _text(number, "utf-8"))
        stream = getattr(sys, name)
        # Without a descriptor there is nothing to write to, and what stands in for it is somebody else's.
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _text(stream.fileno(), stream.encoding, stream.errors, line_buffering=stream.line_buffering))


def _open_on_nothing(number: int) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)


def _text(descriptor: int, encoding: str, errors: str | None = None, *, line_buffering: bool = False) -> io.TextIOWrapper:
    """Text on a descriptor, which stays open when the text is closed."""
    pipe = io.BufferedWriter(_Pipe(descriptor, "w", closefd=False))
    return io.TextIOWrapper(pipe, encoding=encoding, errors=errors, line_buffering=line_buffering)


@contextmanager
def results_on_stdout() -> Iterator[TextIO]:
    """The process's stdout for results alone: what anybody else prints, Python or not, goes to stderr."""
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    try:
        with _text(descriptor, "utf-8") as stdout, redirect_stdout(sys.stderr):
            yield stdout
    finally:
        os.dup2(descriptor, 1)
        os.close(descriptor)


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
