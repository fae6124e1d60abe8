"""The border between a watcher and the training: no exception of the watcher crosses it."""

from collections.abc import Iterator
from contextlib import contextmanager

from optprof.scenarios import schema

from ..records.outcome import one_line


class Border:
    """Keeps what a watcher could not do, each thing once, and lets the training go on."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    @contextmanager
    def within(self, task: str) -> Iterator[None]:
        """Do what is inside, and note where it cannot be done; `task` is "count the gradients"."""
        try:
            yield
        except Exception as error:
            self._reasons.setdefault(f"could not {task}", one_line(error))

    def note(self, fact: str) -> None:
        """Note something that spoils the record."""
        self._reasons.setdefault(fact, "")

    def notes(self) -> tuple[str, ...]:
        """Return what was noted, in order, a line each."""
        told = (f"{fact}: {reason}" if reason else fact for fact, reason in self._reasons.items())
        return tuple(map(schema.shortened, told))
