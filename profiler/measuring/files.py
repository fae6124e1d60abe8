"""Files that a measurement leaves beside its record: a disk that does not take one costs that file
alone.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where a measurement leaves what is no record; None leaves it out.

    `snapshot` is a pickle of CUDA's allocator for memory_viz, written when all goes well,
    `when_full` one that is written when memory runs out. `trace` is a folder for torch.profiler's
    trace of a few iterations. All lie below `run`, the run's folder, and no link is followed there.
    `lost` pairs what could not be written with the reason.
    """

    run: Path | None = None
    snapshot: Path | None = None
    when_full: Path | None = None
    trace: Path | None = None
    lost: list[tuple[Path, str]] = field(default_factory=list)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Write a file inside; an OSError, or a ValueError that refuses a link, ends that alone,
        and is printed and kept.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            # The log may lie on the same disk.
            with suppress(OSError, ValueError):
                traceback.print_exc()
            named = Path(getattr(error, "filename", None) or path)
            inside = self.run is not None and named.is_relative_to(self.run)
            self.lost.append(
                (named if inside else path, getattr(error, "strerror", None) or str(error))
            )
