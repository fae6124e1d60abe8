"""A campaign's folder: JSON lines, which are only appended, so that an interruption loses none.

Several processes append to it, one at a time. A reader skips an incomplete line.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The most bytes of the files, with space for the last line.
MOST_FILES = 8
MOST_BYTES = 16 << 20
FULL_BYTES = 12 << 20
MOST_RECORDING_FILES = 4


@dataclass(frozen=True)
class Journal:
    """The files of a campaign: `journal.jsonl`, `records.jsonl` and `recordings-1.jsonl` and on."""

    folder: Path

    def append(self, file: str, **line: Any) -> None:
        """Append one line and sync it to disk; raise ValueError if the file is full."""
        data = json.dumps(line, default=str).encode() + b"\n"
        descriptor = os.open(self.folder / file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            length = os.fstat(descriptor).st_size
            if length + len(data) > MOST_BYTES:
                raise ValueError(f"{file} has {length} bytes, and no room for {len(data)} more")
            if length and os.pread(descriptor, 1, length - 1) != b"\n":
                # A process was killed during a write.
                data = b"\n" + data
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def note(self, kind: str, **data: Any) -> None:
        """Append to the journal."""
        self.append("journal.jsonl", kind=kind, **data)

    def recordings(self) -> str:
        """Return the file for the next recording; raise ValueError if all are full."""
        for number in range(1, MOST_RECORDING_FILES + 1):
            path = self.folder / f"recordings-{number}.jsonl"
            if not path.exists() or path.stat().st_size < FULL_BYTES:
                return path.name
        raise ValueError(f"{MOST_RECORDING_FILES} files of recordings are full")

    def lines(self, pattern: str) -> Iterator[dict[str, Any]]:
        """Yield the whole lines of the files whose names fit the pattern."""
        for path in sorted(self.folder.glob(pattern)):
            with path.open("rb") as file:
                for line in file:
                    try:
                        data = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(data, dict):
                        yield data
