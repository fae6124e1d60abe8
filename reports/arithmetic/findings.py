"""Findings: what a run found, worked out once for every table, picture and page that shows it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from profiler.record import Record
from profiler.timeline import Timeline

from ..style import Mark, marks
from ..units import count_text
from ..words import conditions, shared
from .accumulations import accumulations
from .courses import Course, courses
from .curves import Series, curves
from .entries import Entry, Setting, entries, failures, setting_names
from .labels import OptimizerKey, labels, optimizer_key
from .paces import Pace, paces
from .pareto import Tradeoff, tradeoffs
from .peaks import Peak, peaks
from .savings import Saving, savings
from .time_curves import TimeSeries, time_curves
from .times import Timing, timings

# A picture with more rows is no longer looked at.
MOST_ROWS = 16

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The records of a run and all that is derived from them; ValueError for a run without records."""

    records: Sequence[Record]
    entries: Sequence[Entry]
    savings: Sequence[Saving]
    curves: Sequence[Series]
    peaks: Sequence[Peak]
    courses: Sequence[Course]
    timings: Sequence[Timing]
    names: dict[Setting, str]
    labels: dict[OptimizerKey, str]
    marks: dict[str, Mark]

    @classmethod
    def of(cls, records: Sequence[Record], timelines: Mapping[str, Timeline] | None = None) -> "Findings":
        """What these records say, and the timelines of their scenarios by the names of their files."""
        if not records:
            raise ValueError("the run holds no records, so there is nothing to report; run `optprof profile MODEL` again")
        found, called = entries(records), labels(records)
        # What failed is asked for too; the small records that only stand on the curve are not what the run is about.
        asked = [entry.setting for entry in found] + [Setting.of(record.scenario, record.memory) for record in failures(records)]
        return cls(
            records=records,
            entries=found,
            savings=savings(found),
            curves=curves(records),
            peaks=peaks(found, records),
            courses=courses(found, records, called, timelines or {}),
            timings=timings(records),
            names=setting_names(asked or [Setting.of(record.scenario, record.memory) for record in records]),
            labels=called,
            # Ways to accumulate have marks of their own: no picture shows them beside optimizers.
            marks=marks(way.spec for group in accumulations(records) for way in group)
            | marks([*called.values(), *(entry.label for entry in found)]),
        )

    @cached_property
    def paces(self) -> list[Pace]:
        """The time of each step against the baseline's."""
        return paces(self.entries)

    @cached_property
    def tradeoffs(self) -> list[Tradeoff]:
        """Time against memory."""
        return tradeoffs(self.entries)

    @cached_property
    def time_curves(self) -> list[TimeSeries]:
        """Times of the step against parameters."""
        return time_curves(self.records)

    @property
    def models(self) -> list[str]:
        """The models that were asked for, in the order of the run."""
        return list(dict.fromkeys(setting.model for setting in self.names))

    def name_of(self, setting: Setting) -> str:
        """The name of a setting; of one on the curve alone, its model."""
        return self.names.get(setting, setting.model)

    def setting_of(self, timing: Timing) -> str:
        """The name of the setting that a timing was taken in."""
        return self.name_of(Setting.of(timing.record.scenario))

    def timing_label(self, timing: Timing) -> str:
        """The optimizer of a timing; with device and implementation where the run's timings differ in them."""
        label = self.labels[optimizer_key(timing.record.scenario)]
        common = shared(conditions(other.record) for other in self.timings)
        return label if common else f"{label} · {conditions(timing.record)}"

    def colour_name(self, label: str) -> str:
        """The name of a label's colour among those of a page: mark-3."""
        return f"mark-{list(self.marks).index(label)}"

    @property
    def context(self) -> str:
        """The settings in words: the model and its size if there is one, then what all settings share."""
        settings = list(self.names)
        shared = [trait for trait in settings[0].traits if all(trait in setting.traits for setting in settings)]
        counts = {entry.record.parameter_count for entry in self.entries if entry.record.parameter_count}
        size = [f"{count_text(count)} parameters" for count in counts] if len(counts) == 1 else []
        return " · ".join([*(self.models if len(self.models) == 1 else []), *size, *shared])


def pictured(rows: Sequence[Item], group: Callable[[Item], Hashable]) -> tuple[list[Item], tuple[str, ...]]:
    """The rows that a picture shows, whole groups of them and never none of many; and a note where it leaves some to the table."""
    groups: dict[Hashable, list[Item]] = {}
    for row in rows:
        groups.setdefault(group(row), []).append(row)
    shown: list[Item] = []
    for members in groups.values():
        if not shown or len(shown) + len(members) <= MOST_ROWS:
            shown += members[:MOST_ROWS]
    return shown, () if len(shown) == len(rows) else (f"The picture shows {len(shown)} of {len(rows)} rows; the table has all.",)
