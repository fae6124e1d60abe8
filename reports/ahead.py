"""Ahead: draw the pictures of a run while its next scenarios are simulated."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from .arithmetic.entries import Setting
from .arithmetic.findings import Findings
from .pictures.picture import Drawing, Picture

if TYPE_CHECKING:
    from optprof.scenarios import Scenario

# The findings of more records cost more time than is saved.
MOST_RECORDS = 200
# Each new record changes this picture.
CHANGES = ("state-by-size",)


class Ahead:
    """Draws in a thread while other processes simulate, and never while real steps are timed.

    `drawn` has the pictures so far with their drawings. The report of the run takes the drawing of
    each picture that is still the same, and draws the others. An error is left to the report, which
    meets it again. `scenarios` are those of the run.
    """

    def __init__(
        self, folder: Path, baseline: str | None, scenarios: "Sequence[Scenario]" = ()
    ) -> None:
        self.drawn: list[tuple[Picture, Drawing]] = []
        self._folder, self._baseline = folder, baseline
        self._setting: object = self
        self._left = Counter(map(_setting, scenarios))
        self._begun: set[Setting] = set()
        self._running = 0
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None
        self._is_paused = Event()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_error: object) -> None:
        self.pause()
        self._thread.shutdown()

    def start(self, scenario: "Scenario") -> None:
        """Note that a scenario starts: go on with drawing, or pause if its steps will be timed.

        A picture compares optimizers in one setting, so most are complete when the setting changes.
        States of other models only extend the plot over sizes, and count as one setting.
        """
        setting = _setting(scenario)
        self._running += 1
        if setting is not None:
            self._begun.add(setting)
        if scenario.device != "sim":
            self.pause()
        elif setting != self._setting or self._is_paused.is_set():
            self._go_on()
        self._setting = setting

    def finish(self, scenario: "Scenario") -> None:
        """Note that a scenario has ended: draw its setting if that is complete and others run."""
        setting = _setting(scenario)
        self._running -= 1
        self._left[setting] -= 1
        if self._running and setting is not None and not self._left[setting]:
            self._go_on()

    def _go_on(self) -> None:
        self._is_paused.clear()
        # Of several that run at once, a setting may still lack optimizers.
        if any(self._left[setting] > 0 for setting in self._begun):
            return
        if self._last is not None:
            self._last.cancel()
        self._last = self._thread.submit(self._draw)

    def pause(self) -> None:
        """Stop drawing after the present picture, which takes a few tenths of a second."""
        self._is_paused.set()
        if self._last is not None:
            wait([self._last])

    def _draw(self) -> None:
        from optprof.profiler.records.store import RunStore

        from . import html
        from .pictures import pictures
        from .pictures.drawing import FOR_PAPER, draw

        html.prepare()
        store = RunStore(self._folder)
        records = store.read_standing()
        if not records or len(records) > MOST_RECORDS:
            return
        timelines = store.read_timelines(records)
        findings = Findings.of(records, timelines, baseline=self._baseline)
        done = {picture.name: (picture, drawing) for picture, drawing in self.drawn}
        for picture in pictures(findings):
            if picture.kind in CHANGES:
                continue
            for part in picture.files.values():
                if self._is_paused.is_set():
                    return
                if part.name not in done or done[part.name][0] != part:
                    done[part.name] = (part, draw(part, FOR_PAPER))
                    self.drawn = list(done.values())


def _setting(scenario: "Scenario") -> Setting | None:
    return Setting.of(scenario) if scenario.workload == "train" else None
