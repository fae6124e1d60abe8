"""Log: the beginning and the end of a scenario's output, in a file that cannot fill the disk."""

import os

from ..records.store import RunStore
from ..safety import disk

# Bytes to keep from the beginning and from the end of the output.
HEAD = TAIL = 1 << 20
_LAST_WORDS = 64 << 10
# The last lines of a log, and their letters, in an error.
_LAST_LINES = 3
_MOST_LETTERS = 600


class Log:
    """A new file of a run, made with the first output; a full disk costs only the log.

    `error` is the reason if the output could not be written.
    """

    def __init__(self, store: RunStore) -> None:
        # The path may be relative, and the working directory may change.
        self._store = RunStore(store.folder.absolute())
        self._below = self._store.folder
        self.path = self._store.log_path()
        self.error: OSError | ValueError | None = None
        self._descriptor: int | None = None
        self._seen = 0
        self._tail = bytearray()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def is_there(self) -> bool:
        """Return whether there is a file with output."""
        return self._seen > 0 and self.error is None

    @property
    def last_words(self) -> str:
        """The end of the output, as text."""
        return self._tail[-_LAST_WORDS:].decode(errors="replace")

    def write(self, printed: bytes) -> None:
        """Write output that belongs to the beginning, and keep the rest for the end."""
        head = printed[: max(0, HEAD - self._seen)]
        self._seen += len(printed)
        self._tail += printed
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]
        self._put(head)

    def close(self) -> None:
        """Write the end of the output; a second call does nothing."""
        behind = self._seen - HEAD
        if self._descriptor is not None and behind > 0:
            left_out = max(0, behind - TAIL)
            between = (
                f"\n[optprof: {left_out} bytes are left out here]\n".encode() if left_out else b""
            )
            self._put(between + self._tail[-min(behind, TAIL) :])
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _put(self, data: bytes | bytearray) -> None:
        if not data or self.error is not None:
            return
        try:
            if self._descriptor is None:
                disk.make_folder(self.path.parent, below=self._below)
                self._descriptor = self._open()
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _open(self) -> int:
        while True:
            try:
                how = os.O_CREAT | os.O_EXCL
                return disk.open_to_append(self.path, how, below=self._below)
            except FileExistsError:
                # That of another scenario, which runs at the same time.
                self.path = self._store.log_path()

    def _give_up(self, error: OSError | ValueError) -> None:
        """Remove the log, which leaves its space to the record."""
        self.error = error
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            disk.remove(self.path)


def last_lines(text: str) -> str:
    """Return the last lines of a log as one line, without control characters."""
    lines = [
        "".join(filter(str.isprintable, line)).strip()
        for line in text.splitlines()
        if any(map(str.isalnum, line))
    ]
    words = " | ".join(lines[-_LAST_LINES:])
    return words if len(words) <= _MOST_LETTERS else f"...{words[-_MOST_LETTERS:]}"
