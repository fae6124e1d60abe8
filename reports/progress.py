"""Progress: the scenario that runs, and an estimate of what is left."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from .streams import console_on, is_quiet, say

if TYPE_CHECKING:
    from optprof.scenarios import Scenario


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Show a line on the terminal while the code inside runs, as long as loading torch takes."""
    stream = sys.stderr
    is_shown = not is_quiet() and stream.isatty()
    if is_shown:
        print(f"{text} ...", file=stream, end="", flush=True)
    try:
        yield
    finally:
        if is_shown:
            # The streams of a command escape the characters that would erase the line.
            os.write(stream.fileno(), b"\r\x1b[K")


@contextmanager
def progress(scenarios: "Sequence[Scenario]") -> Iterator[Callable[[int, "Scenario"], None]]:
    """Yield a function to call before each scenario, with its place.

    It moves a bar on a terminal, and prints a line elsewhere. Both say how long the rest takes.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    if is_quiet():
        yield lambda _place, _scenario: None
        return
    total, left = len(scenarios), TimeLeft(scenarios)
    terminal = console_on(sys.stderr)
    # One line on any terminal: its end, the scenario, is cut.
    one_line = Column(no_wrap=True, overflow="ellipsis")
    description = TextColumn("{task.description}", markup=False, table_column=one_line)
    bar_of = BarColumn(bar_width=min(20, terminal.width // 8))
    columns = (bar_of, MofNCompleteColumn(), TimeElapsedColumn(), description)
    with Progress(
        *columns, console=terminal, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task = bar.add_task("", total=total)

        def ended(seconds: float | None) -> None:
            if seconds is not None:
                say(f"  {seconds:.1f} s", level=1)

        def started(place: int, scenario: "Scenario") -> None:
            ended(left.start(place, monotonic()))
            gpu = f", {scenario.gpu}" if scenario.gpu else ""
            title = (
                f"{scenario.model} {scenario.optimizer} {scenario.workload} on"
                f" {scenario.device}{gpu}"
            )
            title, rest = " ".join(title.split()), left.text()
            bar.update(task, completed=place, description=" · ".join(filter(None, (rest, title))))
            if not terminal.is_terminal:
                words = " · ".join(filter(None, (title, rest)))
                sys.stderr.write(f"[{place + 1}/{total}] {words}\n")

        yield started
        ended(left.start(total, monotonic()))


class TimeLeft:
    """Estimate the seconds that a run still takes, from those of its scenarios so far.

    A scenario is expected to take as long as others of its kind took on average: of its model,
    device and workload, else of its device and workload.
    """

    def __init__(self, scenarios: "Sequence[Scenario]") -> None:
        self._scenarios = scenarios
        self._seconds: dict[tuple[str, ...], list[float]] = {}
        self._place = 0
        self._since: float | None = None

    def start(self, place: int, now: float) -> float | None:
        """Note that a scenario starts, which ends the one before; return the latter's seconds."""
        before, since = self._place, self._since
        self._place, self._since = place, now
        if since is None:
            return None
        for kind in _kinds(self._scenarios[before]):
            self._seconds.setdefault(kind, []).append(now - since)
        return now - since

    def text(self) -> str:
        """Return the estimate, with the running scenario; nothing before the first has ended."""
        seconds = [self._expected(each) for each in self._scenarios[self._place :]]
        known = [each for each in seconds if each is not None]
        # The first scenario traces the model for the others, which are faster.
        if not known or sum(known) < 1:
            return ""
        least = "more than" if len(known) < len(seconds) else "about"
        return f"{least} {_rounded(sum(known))} left"

    def _expected(self, scenario: "Scenario") -> float | None:
        taken = next(filter(None, map(self._seconds.get, _kinds(scenario))), None)
        return sum(taken) / len(taken) if taken else None


def _kinds(scenario: "Scenario") -> tuple[tuple[str, ...], ...]:
    kind = scenario.device, scenario.workload
    return (scenario.model, *kind), kind


def _rounded(seconds: float) -> str:
    """Return seconds as a person says them: 40 s, 3 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function to call with the name of a step, what is done of it, and the whole.

    It moves a bar on a terminal, and prints each step once elsewhere.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    if is_quiet():
        yield lambda _name, _done, _whole: None
        return
    terminal = console_on(sys.stderr)
    columns = (BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(
        *columns, console=terminal, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        task, names = bar.add_task("", total=None), set[str]()

        def advance(name: str, done: int, whole: int) -> None:
            bar.update(task, description=name, completed=done, total=whole)
            if not terminal.is_terminal and name not in names:
                sys.stderr.write(f"{name}\n")
            names.add(name)

        yield advance
