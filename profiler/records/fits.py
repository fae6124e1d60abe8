"""What fits, as plain data: whether a training step runs on a GPU, how far the batch can grow, and
what would make it fit.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optprof.scenarios.spec import Scenario

# Where the search for a largest batch ends, for models whose step does not grow with it.
LARGEST_BATCH = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the scenario that makes it fit: the fields that differ, and the bytes that are
    then left of the GPU.
    """

    fields: Mapping[str, Any]
    left: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a scenario's training step runs on the GPU that it names; all counts are exact bytes,
    all of them simulated.

    `usable` is what torch can take of the GPU, `needed` the peak of what it would reserve on an
    unlimited device, and `left` what it leaves of this one, None where it runs out. All count the
    most that cuDNN may take for convolutions and recurrent layers; `may_fit` is true where the step
    runs out with them and not without them.

    `largest_batch` is 0 where no batch fits and None where the model's batch cannot be chosen; from
    LARGEST_BATCH on larger ones may fit. `changes` are the cheapest that were found to make it fit,
    the cheapest first; `reason` says why a GPU cannot run it at any size, `error` in one line why
    it could not be simulated.
    """

    scenario: Scenario
    usable: int
    needed: int | None = None
    left: int | None = None
    may_fit: bool = False
    largest_batch: int | None = None
    changes: tuple[Change, ...] = ()
    reason: str | None = None
    error: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the step runs as it was asked for."""
        return self.left is not None

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready data."""
        return {"fits": self.fits, **asdict(self)}
