"""Fits: whether a training step runs on a GPU, how large its batch can be, what would make it fit.

The answers of `optprof fit` and of a run's capacity table, as plain data.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from optprof.scenarios.spec import Scenario

# The search for a largest batch ends here: some models' steps do not grow with the batch.
LARGEST_BATCH = 1 << 20
# The simulator's error: a step that leaves less than this share of its bytes may not fit the card.
SPARE = 0.02

Answer = Literal["fits", "tight", "unsure", "fails", "unsupported"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that makes a scenario fit: the fields that differ, and the bytes then left."""

    fields: Mapping[str, Any]
    left: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """An answer for one scenario's training step on one GPU; all counts are exact bytes.

    `usable` is what torch can take of the GPU, `needed` the reserved peak on an unlimited device,
    and `left` what is left of this GPU, None if the step runs out of memory. All count the largest
    workspaces that cuDNN may take for convolutions and recurrent layers. `may_fit` is true if the
    step runs out, and smaller workspaces or an earlier release of cached blocks might save it.

    `largest_batch` is the largest that is known to fit, 0 if a batch of 1 fails, and
    `failing_batch` the smallest above it that is known to fail; both may be unknown. `changes` make
    the step fit, the cheapest first. `reason` says why the GPU cannot run the step at any size, and
    `error`, in one line, why the step could not be simulated. `deciding_options` is as in a record.
    """

    scenario: Scenario
    usable: int
    needed: int | None = None
    left: int | None = None
    may_fit: bool = False
    largest_batch: int | None = None
    failing_batch: int | None = None
    changes: tuple[Change, ...] = ()
    reason: str | None = None
    error: str | None = None
    deciding_options: Mapping[str, Any] | None = None

    @property
    def fits(self) -> bool:
        """Return whether the step runs as requested."""
        return self.answer in ("fits", "tight")

    @property
    def answer(self) -> Answer:
        """The answer in a word: "tight" leaves less than 2 % of what is reserved."""
        if self.reason is not None:
            return "unsupported"
        if self.left is None:
            return "unsure" if self.may_fit else "fails"
        return "fits" if self.left >= SPARE * (self.usable - self.left) else "tight"

    @property
    def spare(self) -> int | None:
        """Bytes that are left, negative if the GPU is short of them; None if neither is known."""
        if self.left is not None or self.needed is None:
            return self.left
        return self.usable - self.needed

    @property
    def is_batch_settled(self) -> bool:
        """Return whether the batch above the largest one that fits is known to fail."""
        return self.failing_batch == (self.largest_batch or 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready data."""
        return {"fits": self.fits, **asdict(self)}
