"""Files that a measurement writes next to its record; a failed write costs only that file."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Files:
    """Paths of the files to write next to a record; None writes no such file.

    `snapshot` is a pickle of CUDA's allocator for memory_viz, written after a success; `when_full`
    one written when memory runs out. `trace` is a folder for torch.profiler's trace of a few
    iterations. All are below `run`, the run's folder, and no link is followed there. `lost` pairs
    each file that could not be written with the reason.
    """

    run: Path | None = None
    snapshot: Path | None = None
    when_full: Path | None = None
    trace: Path | None = None
    lost: list[tuple[Path, str]] = field(default_factory=list)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Write a file inside; an OSError, or the ValueError of a link, only goes into `lost`."""
        try:
            yield
        except (OSError, ValueError) as error:
            # The log may be on the same disk.
            with suppress(OSError, ValueError):
                traceback.print_exc()
            named = Path(getattr(error, "filename", None) or path)
            inside = self.run is not None and named.is_relative_to(self.run)
            self.lost.append(
                (named if inside else path, getattr(error, "strerror", None) or str(error))
            )
