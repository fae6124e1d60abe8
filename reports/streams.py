"""Streams: results on stdout, progress and all else on stderr; a reader may leave either.

`profiler.safety.plain` writes all text: a record, a suite or the command line cannot act on the
terminal. Only a console writes escape sequences, for its own colours and bars.
"""

import io
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from optprof.profiler.safety.plain import plain

if TYPE_CHECKING:
    from rich.console import Console


# The file that an OSError names for a full stdout.
STDOUT = "stdout"


class _Pipe(io.FileIO):
    """A descriptor that may refuse further text; the command goes on to its end.

    A reader may leave. A full disk under stdout raises one OSError.
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
    """The stream of a console, which makes its text plain before it adds colours."""

    def __init__(self, stream: _PlainText) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def console_on(output: TextIO, *, width: int | None = None) -> "Console":
    """Return a console for tables and bars; their text is plain, on one line and never markup."""
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
    """Let stdout and stderr write plainly, and outlive readers, as `optprof list gpus | head -1`.

    Text to a stream that the shell has closed, as `>&-` does, is lost. Its descriptor is occupied:
    the next open file would take it.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            _open_on_nothing(number)
            setattr(sys, name, _text(number, "utf-8"))
        stream = getattr(sys, name)
        # A stream without a descriptor belongs to someone else, and stays.
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            by_line = stream.line_buffering or stream.write_through
            setattr(sys, name, _text(stream.fileno(), stream.encoding, line_buffering=by_line))


def _open_on_nothing(number: int) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)


def _text(descriptor: int, encoding: str, *, line_buffering: bool = False) -> _PlainText:
    """Return text on a descriptor, which stays open; letters outside the encoding are escaped."""
    pipe = io.BufferedWriter(_Pipe(descriptor, "w", closefd=False))
    return _PlainText(pipe, encoding, "backslashreplace", line_buffering=line_buffering)


@contextmanager
def results_on_stdout() -> Iterator[TextIO]:
    """Yield stdout for results alone; all other output of the process goes to stderr."""
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    try:
        with _text(descriptor, "utf-8") as stdout, redirect_stdout(sys.stderr):
            yield stdout
    finally:
        os.dup2(descriptor, 1)
        os.close(descriptor)


def wrapped(text: str, indent: int = 0) -> str:
    """Return a line of stdout, wrapped on a terminal, with further lines indented.

    The width is the terminal's or COLUMNS. Into a pipe the line stays whole, for grep.
    """
    columns = os.environ.get("COLUMNS", "")
    if not columns.isdecimal() and not sys.stdout.isatty():
        return text
    width = int(columns) if columns.isdecimal() else os.get_terminal_size(1).columns
    return textwrap.fill(
        text,
        max(width, indent + 20),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )


_verbosity = 0


def set_verbosity(level: int) -> None:
    """Let `say` print more (1), what people usually read (0), or nothing (-1)."""
    global _verbosity
    _verbosity = level


def is_quiet() -> bool:
    """Return whether the user wants results, warnings and errors alone."""
    return _verbosity < 0


def say(text: str, level: int = 0) -> None:
    """Print a line on stderr, unless it is of a higher level than the user chose."""
    if level <= _verbosity:
        sys.stderr.write(f"{text}\n")
