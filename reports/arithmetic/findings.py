"""Findings: all that is derived from a run's records, once for every table and picture."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from optprof.profiler.records.planned import Unfinished
from optprof.profiler.records.record import Record
from optprof.profiler.records.timeline import Timeline

from ..style import Mark, marks
from ..units import count_text
from ..words import conditions, shared
from .accumulations import accumulations
from .courses import Course, courses
from .curves import Series, curves, time_curves
from .entries import Entry, Setting, entries, failures, requested, setting_names
from .labels import OptimizerKey, labels, optimizer_key
from .pareto import Tradeoff, tradeoffs
from .peaks import Peak, peaks
from .ranks import RankRow, rank_rows, side_by_side
from .ratios import Ratio
from .savings import Saving, baseline_of, paces, savings
from .times import Timing, timings

# A picture with more rows is hard to read.
MOST_ROWS = 16

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The records of a run and all that is derived from them, each when it is first read.

    `baseline` is the name of the optimizer that the others are compared with; `unfinished` tells
    which records are still missing.
    """

    records: Sequence[Record]
    timelines: Mapping[str, Timeline]
    baseline: str
    unfinished: Unfinished | None = None

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        timelines: Mapping[str, Timeline] | None = None,
        *,
        baseline: str | None = None,
        unfinished: Unfinished | None = None,
    ) -> "Findings":
        """Return the findings of these records; timelines go by the file names of scenarios.

        Without a requested `baseline`, `baseline_of` chooses one. ValueError for a run without
        records, and for a baseline that the run does not have.
        """
        if not records:
            raise ValueError(
                "the run holds no records, so there is nothing to report; run `optprof profile"
                " MODEL` again"
            )
        records = side_by_side(records)
        return cls(
            records=records,
            timelines=timelines or {},
            baseline=baseline_of(records, baseline),
            unfinished=unfinished,
        )

    @cached_property
    def entries(self) -> list[Entry]:
        """A line for each optimizer and setting."""
        return entries(self.records)

    @cached_property
    def savings(self) -> list[Saving]:
        """The state of each optimizer against the baseline's."""
        return savings(self.entries, self.baseline)

    @cached_property
    def has_savings(self) -> bool:
        """Return whether an optimizer is compared with the baseline."""
        return any(not saving.is_baseline for saving in self.savings)

    @cached_property
    def curves(self) -> list[Series]:
        """Bytes of state against parameters."""
        return curves(self.records)

    @cached_property
    def peaks(self) -> list[Peak]:
        """The peaks of training steps, split by category."""
        return peaks(self.entries, self.records)

    @cached_property
    def ranks(self) -> list[RankRow]:
        """The records of trainings that several ranks share."""
        return rank_rows(self.entries, self.records)

    @cached_property
    def courses(self) -> list[Course]:
        """The timelines of training steps, from event to event."""
        return courses(self.entries, self.records, self.labels, self.timelines)

    @cached_property
    def timings(self) -> list[Timing]:
        """The times of each record whose step was timed."""
        return timings(self.records)

    @cached_property
    def names(self) -> dict[Setting, str]:
        """A name for each setting that the run is about."""
        # A run is about what failed, too, but not about states that only extend a curve.
        settings = [entry.setting for entry in self.entries]
        settings += [
            Setting.of(record.scenario, record.memory)
            for record in failures(requested(self.records))
        ]
        return setting_names(
            settings
            or [Setting.of(record.scenario, record.memory) for record in requested(self.records)]
        )

    @cached_property
    def unshown(self) -> list[Record]:
        """The failures that no entry shows."""
        shown = {entry.bytes_from.scenario for entry in self.entries if entry.bytes_from}
        return [record for record in failures(self.records) if record.scenario not in shown]

    @cached_property
    def labels(self) -> dict[OptimizerKey, str]:
        """A label for each optimizer."""
        return labels(self.records)

    @cached_property
    def marks(self) -> dict[str, Mark]:
        """A mark for each label."""
        # Accumulations may share marks with optimizers, as no picture shows both.
        ways = marks(way.spec for group in accumulations(self.records) for way in group)
        return ways | marks([*self.labels.values(), *(entry.label for entry in self.entries)])

    @cached_property
    def paces(self) -> list[tuple[Entry, Ratio]]:
        """The ratio of each entry's step time to the baseline's."""
        return paces(self.entries, self.baseline)

    @cached_property
    def tradeoffs(self) -> list[Tradeoff]:
        """Time against memory."""
        return tradeoffs(self.entries)

    @cached_property
    def time_curves(self) -> list[Series]:
        """Times of the step against parameters."""
        return time_curves(self.records)

    @cached_property
    def estimated_gpus(self) -> list[str]:
        """The GPUs with an estimate of a step that fits, in the order of the run."""
        gpus = (
            entry.estimate.gpu for entry in self.entries if entry.estimate and not entry.ran_out
        )
        return list(dict.fromkeys(gpus))

    @property
    def models(self) -> list[str]:
        """The models of the settings, in the order of the run."""
        return list(dict.fromkeys(setting.model for setting in self.names))

    def name_of(self, setting: Setting) -> str:
        """Return the name of a setting; for one that is only on a curve, its model."""
        return self.names.get(setting, setting.model)

    def setting_of(self, timing: Timing) -> str:
        """Return the name of a timing's setting."""
        return self.name_of(Setting.of(timing.record.scenario))

    def timing_label(self, timing: Timing) -> str:
        """Return a timing's optimizer, with device and implementation if timings differ in them."""
        label = self.labels[optimizer_key(timing.record.scenario)]
        return label if self._alike else f"{label} · {conditions(timing.record)}"

    @cached_property
    def _alike(self) -> bool:
        """Return whether all timings were taken on one device and implementation."""
        return shared(conditions(timing.record) for timing in self.timings) is not None

    def colour_name(self, label: str) -> str:
        """Return the name of a label's colour on a page: mark-3."""
        return f"mark-{self._places[label]}"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {label: place for place, label in enumerate(self.marks)}

    @property
    def context(self) -> str:
        """The settings in words: a single model and its size, then the traits that all share."""
        traits = [setting.traits for setting in self.names]
        common = set(traits[0]).intersection(*traits)
        shared = [trait for trait in traits[0] if trait in common]
        counts = {
            entry.record.parameter_count for entry in self.entries if entry.record.parameter_count
        }
        size = [f"{count_text(count)} parameters" for count in counts] if len(counts) == 1 else []
        return " · ".join([*(self.models if len(self.models) == 1 else []), *size, *shared])


def pictured(
    rows: Sequence[Item], group: Callable[[Item], Hashable]
) -> tuple[list[Item], tuple[str, ...]]:
    """Return the whole groups of rows that a picture shows, and a note if some are left out."""
    groups: dict[Hashable, list[Item]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    shown: list[Item] = []
    for members in groups.values():
        if not shown or len(shown) + len(members) <= MOST_ROWS:
            shown += members[:MOST_ROWS]
    return shown, (
        ()
        if len(shown) == len(rows)
        else (f"The picture shows {len(shown)} of {len(rows)} rows; the table has all.",)
    )
