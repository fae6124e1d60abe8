"""Progress: the scenario that runs, and an estimate of what is left."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from .streams import console_on, is_quiet, say

if TYPE_CHECKING:
    from rich.progress import Progress

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


class Shown:
    """The progress of scenarios: `started` and `finished` are called with the place of each."""

    def started(self, place: int, scenario: "Scenario") -> None:
        """Show the scenario that starts."""

    def finished(self, place: int) -> None:
        """Count a scenario that has ended."""


@contextmanager
def progress(scenarios: "Sequence[Scenario]", *, jobs: int = 1) -> Iterator[Shown]:
    """Yield the progress, of which `started` must be called, and `finished` if `jobs` run at once.

    It moves a bar on a terminal, and prints a line elsewhere. Both say how long the rest takes.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    if is_quiet():
        yield Shown()
        return
    terminal = console_on(sys.stderr)
    # One line on any terminal: its end, the scenario, is cut.
    one_line = Column(no_wrap=True, overflow="ellipsis")
    description = TextColumn("{task.description}", markup=False, table_column=one_line)
    bar_of = BarColumn(bar_width=min(20, terminal.width // 8))
    columns = (bar_of, MofNCompleteColumn(), TimeElapsedColumn(), description)
    with Progress(
        *columns, console=terminal, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        shown = _Bar(scenarios, jobs, bar)
        yield shown
        shown.end()


class _Bar(Shown):
    """A bar on a terminal, and a line for each scenario elsewhere."""

    def __init__(self, scenarios: "Sequence[Scenario]", jobs: int, bar: "Progress") -> None:
        self._bar, self._total, self._jobs = bar, len(scenarios), jobs
        self._left = TimeLeft(scenarios, jobs)
        self._task = bar.add_task("", total=self._total)

    def started(self, place: int, scenario: "Scenario") -> None:
        """Show the scenario that starts, and how long the rest takes."""
        self._say(place - 1, self._left.start(place, monotonic()))
        gpu = f", {scenario.gpu}" if scenario.gpu else ""
        ranks = f", {scenario.parallel} on {scenario.ranks} ranks" if scenario.parallel else ""
        rank = f", rank {scenario.rank}" if scenario.rank else ""
        title = (
            f"{scenario.model} {scenario.optimizer} {scenario.workload} on"
            f" {scenario.device}{gpu}{ranks}{rank}"
        )
        title, rest = " ".join(title.split()), self._left.text()
        self._bar.update(
            self._task,
            completed=self._left.done,
            description=" · ".join(filter(None, (rest, title))),
        )
        if not self._bar.console.is_terminal:
            words = " · ".join(filter(None, (title, rest)))
            sys.stderr.write(f"[{place + 1}/{self._total}] {words}\n")

    def finished(self, place: int) -> None:
        """Count the scenario, and with -v say its seconds."""
        self._say(place, self._left.end(place, monotonic()))
        self._bar.update(self._task, completed=self._left.done)

    def end(self) -> None:
        """Say the seconds of the last scenario."""
        self._say(self._total - 1, self._left.start(self._total, monotonic()))

    def _say(self, place: int, seconds: float | None) -> None:
        if seconds is not None:
            which = f"[{place + 1}/{self._total}] " if self._jobs > 1 else ""
            say(f"  {which}{seconds:.1f} s", level=1)


class TimeLeft:
    """Estimate the seconds that a run still takes, from those of its scenarios so far.

    A scenario is expected to take as long as others of its kind took on average: of its model,
    device and workload, else of its device and workload. Up to `jobs` run at once.
    """

    def __init__(self, scenarios: "Sequence[Scenario]", jobs: int = 1) -> None:
        self._scenarios, self._jobs = scenarios, jobs
        self._seconds: dict[tuple[str, ...], list[float]] = {}
        self._since: dict[int, float] = {}
        # As a dictionary, which keeps the order.
        self._left = dict.fromkeys(range(len(scenarios)))

    @property
    def done(self) -> int:
        """The number of scenarios that have ended."""
        return len(self._scenarios) - len(self._left)

    def start(self, place: int, now: float) -> float | None:
        """Note that a scenario starts.

        If one runs at a time, that ends the one before, whose seconds are returned.
        """
        before = next(iter(self._since), None) if self._jobs == 1 else None
        seconds = None if before is None else self.end(before, now)
        self._since[place] = now
        return seconds

    def end(self, place: int, now: float) -> float | None:
        """Note that a scenario has ended; return its seconds if it runs."""
        if place not in self._since:
            return None
        seconds = now - self._since.pop(place)
        self._left.pop(place, None)
        for kind in _kinds(self._scenarios[place]):
            self._seconds.setdefault(kind, []).append(seconds)
        return seconds

    def text(self) -> str:
        """Return the estimate, with the running scenarios; nothing before the first has ended."""
        seconds = [self._expected(self._scenarios[place]) for place in self._left]
        known = [each for each in seconds if each is not None]
        left = sum(known) / min(self._jobs, max(1, len(known)))
        # The first scenario traces the model for the others, which are faster.
        if not known or left < 1:
            return ""
        least = "more than" if len(known) < len(seconds) else "about"
        return f"{least} {_rounded(left)} left"

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
