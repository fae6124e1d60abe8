"""What a measurement leaves beside its record, and a disk that does not take it: that costs the file, and nothing else."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where a measurement leaves what is no record; None leaves it out.

    `snapshot` is a pickle of CUDA's allocator for memory_viz, written when all goes well, `when_full` one that is written when memory runs
    out. `trace` is a folder for torch.profiler's trace of a few iterations. `errors` is what could not be written, with the files' names.
    """

    snapshot: Path | None = None
    when_full: Path | None = None
    trace: Path | None = None
    errors: list[OSError] = field(default_factory=list)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Write a file inside; an OSError ends that alone, and is printed and kept."""
        try:
            yield
        except OSError as error:
            # The log may lie on the same disk.
            with suppress(OSError):
                traceback.print_exc()
            self.errors.append(OSError(error.errno, error.strerror, error.filename or str(path)))
