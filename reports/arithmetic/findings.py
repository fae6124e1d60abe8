"""Findings: what a run found, worked out once for every table, picture and page that shows it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from optprof.profiler.records.record import Record
from optprof.profiler.records.timeline import Timeline

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
    """The records of a run and all that is derived from them, each when it is first read."""

    records: Sequence[Record]
    timelines: Mapping[str, Timeline]

    @classmethod
    def of(
        cls, records: Sequence[Record], timelines: Mapping[str, Timeline] | None = None
    ) -> "Findings":
        """Findings of these records, and the timelines of their scenarios by the names of their
        files.

        ValueError for a run without records.
        """
        if not records:
            raise ValueError(
                "the run holds no records, so there is nothing to report; run `optprof profile"
                " MODEL` again"
            )
        return cls(records=records, timelines=timelines or {})

    @cached_property
    def entries(self) -> list[Entry]:
        """A line for each optimizer and setting."""
        return entries(self.records)

    @cached_property
    def savings(self) -> list[Saving]:
        """The state of each optimizer against the baseline's."""
        return savings(self.entries)

    @cached_property
    def curves(self) -> list[Series]:
        """Bytes of state against parameters."""
        return curves(self.records)

    @cached_property
    def peaks(self) -> list[Peak]:
        """The peaks of training steps, split by category."""
        return peaks(self.entries, self.records)

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
        # What failed is asked for too; the small records that only stand on the curve are not what
        # the run is about.
        asked = [entry.setting for entry in self.entries]
        asked += [Setting.of(record.scenario, record.memory) for record in failures(self.records)]
        return setting_names(
            asked or [Setting.of(record.scenario, record.memory) for record in self.records]
        )

    @cached_property
    def labels(self) -> dict[OptimizerKey, str]:
        """A label for each optimizer."""
        return labels(self.records)

    @cached_property
    def marks(self) -> dict[str, Mark]:
        """A mark for each label."""
        # Ways to accumulate have marks of their own: no picture shows them beside optimizers.
        ways = marks(way.spec for group in accumulations(self.records) for way in group)
        return ways | marks([*self.labels.values(), *(entry.label for entry in self.entries)])

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
        """The optimizer of a timing; with device and implementation where the run's timings differ
        in them.
        """
        label = self.labels[optimizer_key(timing.record.scenario)]
        return label if self._alike else f"{label} · {conditions(timing.record)}"

    @cached_property
    def _alike(self) -> bool:
        """Return whether all timings were taken on one device and implementation."""
        return shared(conditions(timing.record) for timing in self.timings) is not None

    def colour_name(self, label: str) -> str:
        """The name of a label's colour among those of a page: mark-3."""
        return f"mark-{self._places[label]}"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {label: place for place, label in enumerate(self.marks)}

    @property
    def context(self) -> str:
        """The settings in words: the model and its size if there is one, then what all settings
        share.
        """
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
    """The rows that a picture shows, whole groups of them and never none of many; and a note where
    it leaves some to the table.
    """
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
