"""The border between a watcher and the training loop: no exception of the watcher crosses it."""

from collections.abc import Iterator
from contextlib import contextmanager

from optprof.scenarios import schema

from ..records.outcome import one_line


class Border:
    """Notes each failure of the watcher once, and lets the training go on."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    @contextmanager
    def within(self, task: str) -> Iterator[None]:
        """Run the code inside and note its exception; `task` reads like "count the gradients"."""
        try:
            yield
        except Exception as error:
            self._reasons.setdefault(f"could not {task}", one_line(error))

    def note(self, fact: str) -> None:
        """Note a fact that makes the record less exact."""
        self._reasons.setdefault(fact, "")

    def notes(self) -> tuple[str, ...]:
        """Return the notes in order, one line each."""
        lines = (f"{fact}: {reason}" if reason else fact for fact, reason in self._reasons.items())
        return tuple(map(schema.shortened, lines))
