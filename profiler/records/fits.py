"""Fits: whether a training step runs on a GPU, how large its batch can be, what would make it fit.

The answers of `optprof fit` and of a run's capacity table, as plain data.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from optprof.scenarios.nccl import nccl_bytes
from optprof.scenarios.spec import Scenario

# The search for a largest batch ends here: some models' steps do not grow with the batch.
LARGEST_BATCH = 1 << 20
# The simulator's error: a step that leaves less than this share of its bytes may not fit the card.
SPARE = 0.02

# Numbers of ranks that are tried if a command names none.
USUAL_RANKS = (1, 2, 4, 8, 16, 32, 64)

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
    `least` takes the place of `needed` if the parameters and gradients of a rank alone, which it
    counts, exceed the GPU: such a step is not simulated. `fits_with_nccl` tells whether the step
    also fits if NCCL takes the most of its estimated range; it is None for a single GPU.

    `largest_batch` is the largest that is known to fit, 0 if a batch of 1 fails, and
    `failing_batch` the smallest above it that is known to fail; both may be unknown. `changes` make
    the step fit, the cheapest first. `reason` says why the GPU cannot run the step at any size, and
    `error`, in one line, why the step could not be simulated. `deciding_options` is as in a record.
    """

    scenario: Scenario
    usable: int
    needed: int | None = None
    least: int | None = None
    left: int | None = None
    may_fit: bool = False
    fits_with_nccl: bool | None = None
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
        """The answer in a word.

        "tight" leaves less than 2 % of what is reserved, or does not fit if NCCL takes its most.
        """
        if self.reason is not None:
            return "unsupported"
        if self.left is None:
            return "unsure" if self.may_fit else "fails"
        return (
            "fits" if self.left >= SPARE * (self.usable - self.left) and self.is_sure else "tight"
        )

    @property
    def nccl(self) -> tuple[int, int] | None:
        """The estimated range of bytes that NCCL takes; None for a single GPU."""
        return nccl_bytes(self.scenario.parallel, self.scenario.ranks)

    @property
    def is_sure(self) -> bool:
        """Return whether the step fits whatever NCCL takes."""
        return self.left is not None and self.fits_with_nccl is not False

    @property
    def spare(self) -> int | None:
        """Bytes that are left, negative if the GPU is short of them; None if neither is known."""
        needed = self.least if self.needed is None else self.needed
        if self.left is not None or needed is None:
            return self.left
        return self.usable - needed

    @property
    def is_batch_settled(self) -> bool:
        """Return whether the batch above the largest one that fits is known to fail."""
        return self.failing_batch == (self.largest_batch or 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready data."""
        return {"fits": self.fits, **asdict(self), "nccl_estimated": self.nccl}


@dataclass(frozen=True, kw_only=True)
class RankSearch:
    """A search over numbers of ranks: the way, the numbers tried, and those left out with why."""

    parallel: str
    counts: tuple[int, ...]
    left_out: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Need:
    """The GPUs of one kind that a training step with one optimizer needs.

    `tried` has the answers from the fewest GPUs up. `fit` is the first that fits, and `sure` the
    first that also leaves as much as NCCL may take; None if no number that was tried does.
    """

    tried: tuple[Fit, ...]

    @property
    def fit(self) -> Fit | None:
        """The answer for the smallest number of GPUs that the step fits on."""
        return next((fit for fit in self.tried if fit.fits), None)

    @property
    def sure(self) -> Fit | None:
        """The answer for the smallest number that also leaves room for NCCL's most."""
        return next((fit for fit in self.tried if fit.fits and fit.is_sure), None)

    @property
    def below(self) -> Fit | None:
        """The answer for the largest number that the step does not fit on, below `fit`."""
        first = len(self.tried) if self.fit is None else self.tried.index(self.fit)
        return self.tried[first - 1] if first else None

    @property
    def last(self) -> Fit:
        """The answer for the largest number that was tried."""
        return self.tried[-1]

    def to_dict(self) -> dict[str, Any]:
        """The need as JSON-ready data; a number is None if no number that was tried is enough."""
        scenario = self.last.scenario
        return {
            "gpu": scenario.gpu,
            "optimizer": scenario.optimizer,
            "options": scenario.options,
            "gpus_needed": self.fit and self.fit.scenario.ranks,
            "gpus_with_room_for_nccl": self.sure and self.sure.scenario.ranks,
        }


def needs(fits: Iterable[Fit]) -> list[Need]:
    """Return the need of each GPU and optimizer, from the answers of a search over ranks."""
    groups: dict[tuple[str | None, str, str], list[Fit]] = {}
    for fit in fits:
        scenario = fit.scenario
        key = scenario.gpu, scenario.optimizer, repr(scenario.options)
        groups.setdefault(key, []).append(fit)
    return [
        Need(tried=tuple(sorted(group, key=lambda fit: fit.scenario.ranks)))
        for group in groups.values()
    ]
