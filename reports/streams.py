"""Streams: results alone on stdout, progress and all else on stderr; a reader may leave either.

Text is written plainly, by `profiler.safety.plain`: text of a record, a suite or the command line
cannot act on the terminal. Only a console writes sequences, its own colours and bars.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from optprof.profiler.safety.plain import plain

if TYPE_CHECKING:
    from rich.console import Console

    from optprof.scenarios import Scenario


# The file that an OSError names where stdout takes no more.
STDOUT = "stdout"


class _Pipe(io.FileIO):
    """A descriptor that may stop taking what is written; the command goes on to its end.

    A reader that leaves is no fault. A full disk under stdout is told once, by an OSError.
    """

    _is_lost = False

    def write(self, data: Any, /) -> int:
        if not self._is_lost:
            try:
                return super().write(data)
            except BrokenPipeError:
                self._is_lost = True
            except OSError as error:
                self._is_lost = True
                if self.fileno() != 2:
                    raise OSError(error.errno, error.strerror, STDOUT) from error
        return memoryview(data).nbytes


class _PlainText(io.TextIOWrapper):
    """Text in which nothing acts on a terminal; a carriage return ends its line."""

    def write(self, text: str, /) -> int:
        super().write(plain(text.replace("\r\n", "\n").replace("\r", "\n")))
        return len(text)

    def writelines(self, lines: Iterable[str], /) -> None:
        for line in lines:
            self.write(line)


class _ConsoleText:
    """The same stream as a console writes to it, whose text is plain before its colours are
    added.
    """

    def __init__(self, stream: _PlainText) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def console_on(output: TextIO, *, width: int | None = None) -> "Console":
    """Return what draws tables and bars on a stream: text in them is plain, on one line, and no
    markup.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class PlainConsole(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            if isinstance(renderable, str):
                renderable = _line(renderable)
            elif isinstance(renderable, Text):
                renderable = renderable.copy()
                renderable.plain = _line(renderable.plain)
            return super().render(renderable, options)

    file: Any = _ConsoleText(output) if isinstance(output, _PlainText) else output
    return PlainConsole(file=file, width=width, markup=False, emoji=False)


def _line(text: str) -> str:
    return plain(text).replace("\n", " ")


def guard_streams() -> None:
    """Let stdout and stderr write plainly, and outlive readers such as that of `optprof list gpus |
    head -1`.

    What goes to a stream that the shell has closed, as `>&-` does, is lost. Its descriptor is
    taken, or it would become that of the next file that is opened.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            _open_on_nothing(number)
            setattr(sys, name, _text(number, "utf-8"))
        stream = getattr(sys, name)
        # Without a descriptor there is nothing to write to, and what stands in for it is somebody
        # else's.
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            by_line = stream.line_buffering or stream.write_through
            setattr(sys, name, _text(stream.fileno(), stream.encoding, line_buffering=by_line))


def _open_on_nothing(number: int) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)


def _text(descriptor: int, encoding: str, *, line_buffering: bool = False) -> _PlainText:
    """Text on a descriptor, which stays open when the text is closed.

    A letter that the encoding lacks is escaped.
    """
    pipe = io.BufferedWriter(_Pipe(descriptor, "w", closefd=False))
    return _PlainText(pipe, encoding, "backslashreplace", line_buffering=line_buffering)


@contextmanager
def results_on_stdout() -> Iterator[TextIO]:
    """The process's stdout for results alone: what anybody else prints, Python or not, goes to
    stderr.
    """
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
    """A function that is told the place of each scenario before it runs: it moves a bar on a
    terminal, and prints a line elsewhere.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    description = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), description)
    terminal = console_on(sys.stderr)
    with Progress(
        *columns, console=terminal, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task("", total=total)

        def started(place: int, scenario: "Scenario") -> None:
            title = (
                f"{scenario.model} {scenario.optimizer} {scenario.workload} on {scenario.device}"
            )
            title = " ".join(title.split())
            bar.update(task, completed=place, description=title)
            if not terminal.is_terminal:
                sys.stderr.write(f"[{place + 1}/{total}] {title}\n")

        yield started
