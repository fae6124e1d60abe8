"""A campaign's folder: JSON lines that are only appended, so that a cut leaves what there was.

Several processes append to it, one at a time. A line that was cut off is left out when it is read.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a folder may hold, with room for the last line.
MOST_FILES = 8
MOST_BYTES = 16 << 20
FULL_BYTES = 12 << 20
MOST_RECORDING_FILES = 4


@dataclass(frozen=True)
class Journal:
    """The files of a campaign: `journal.jsonl`, `records.jsonl` and `recordings-1.jsonl` and on."""

    folder: Path

    def append(self, file: str, **line: Any) -> None:
        """Append one line and see it onto the disk; ValueError where the file has no room."""
        data = json.dumps(line, default=str).encode() + b"\n"
        descriptor = os.open(self.folder / file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            length = os.fstat(descriptor).st_size
            if length + len(data) > MOST_BYTES:
                raise ValueError(f"{file} has {length} bytes, and no room for {len(data)} more")
            if length and os.pread(descriptor, 1, length - 1) != b"\n":
                # A process was killed while it wrote.
                data = b"\n" + data
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def note(self, kind: str, **data: Any) -> None:
        """Append to the journal itself."""
        self.append("journal.jsonl", kind=kind, **data)

    def recordings(self) -> str:
        """Return the file that takes the next recording; ValueError when all are full."""
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
