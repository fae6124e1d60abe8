"""Comparing two sides of runs: read them, compare, judge by gates, and show in four media."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from optprof.profiler.records.privacy import disclosed
from optprof.profiler.records.record import Record
from optprof.profiler.safety.disk import write_text

from ..arithmetic.ratios import Ratio
from ..document import Document, Medium
from .compare import Compared, MetricChange, Pair, compare_sides, read_side
from .gate import Gate, Offence, offences, per_cent

SCHEMA = 1
_CHANGE = tuple(each.name for each in fields(MetricChange))
_RATIO = tuple(each.name for each in fields(Ratio))


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """A comparison, and what the gates stop of it.

    Every gate is stopped by `unjudged`, lines that could not be read: one of them may be the newest
    record of a scenario. Without gates there are none.
    """

    compared: Compared
    stopped: Sequence[Offence]
    unjudged: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        before: Path,
        after: Path,
        gates: Sequence[str],
        *,
        threshold: str = "5%",
        across_machines: bool = False,
        anonymous: bool = False,
    ) -> "Comparing":
        """Two runs, or two folders of runs; ValueError for a gate or threshold that cannot be read,
        OSError for a folder without runs.
        """
        asked, share = [Gate.parse(text) for text in gates], per_cent(threshold)
        compared = compare_sides(
            read_side(before), read_side(after), threshold=share, across_machines=across_machines
        )
        compared = _anonymous(compared) if anonymous else compared
        return cls(
            compared=compared,
            stopped=offences(compared, asked),
            unjudged=compared.damage if asked else (),
        )

    def render(
        self, output: TextIO, *, only_regressed: bool = False, width: int | None = None
    ) -> None:
        """Print the comparison in `width` columns or the terminal's."""
        from .. import terminal

        terminal.render(self._document("terminal", only_regressed), output, width=width)

    def markdown(self, *, only_regressed: bool = False) -> str:
        """Return the comparison for a pull request."""
        from .. import markdown

        return markdown.render(self._document("markdown", only_regressed))

    def write_page(
        self, page: Path, command: Sequence[str], *, only_regressed: bool = False
    ) -> None:
        """Write the comparison as one HTML file, over an older one.

        OSError where it cannot be written, ValueError for a link.
        """
        from .. import html

        write_text(page, html.render(self._document("page", only_regressed, command)))

    def _document(
        self, medium: Medium, only_regressed: bool, command: Sequence[str] = ()
    ) -> Document:
        from .document import comparison_document

        return comparison_document(
            self.compared, self.stopped, medium, command=command, only_regressed=only_regressed
        )

    def to_dict(self, *, only_regressed: bool = False) -> dict[str, Any]:
        """The same as JSON-ready data, `schema` first: bytes whole, times in seconds, a ratio with
        the ends of its interval.
        """
        members = self._members(only_regressed)
        return {
            name: list(value) if isinstance(value, Iterator) else value
            for name, value in members.items()
        }

    def write_json(self, output: TextIO, *, only_regressed: bool = False) -> None:
        """Write the same as JSON, item by item: that of 100,000 scenarios has 250 MB."""
        lead = "{"
        for name, value in self._members(only_regressed).items():
            output.write(f"{lead}\n {json.dumps(name)}: ")
            lead = ","
            if isinstance(value, Iterator):
                _write_items(value, output)
            else:
                output.write(json.dumps(value, allow_nan=False))
        output.write("\n}\n")

    def _members(self, only_regressed: bool) -> dict[str, Any]:
        pairs = (_pair(pair, only_regressed) for pair in self.compared.pairs)
        return {
            "schema": SCHEMA,
            "threshold": float(self.compared.threshold),
            "superseded": self.compared.superseded,
            "damage": list(self.compared.damage),
            "stopped": map(_stopped, self.stopped),
            "pairs": (
                pair
                for pair in pairs
                if not only_regressed or pair["changes"] or pair["outcome"] == "regressed"
            ),
            "only_before": map(_outcome, self.compared.only_before),
            "only_after": map(_outcome, self.compared.only_after),
        }


def _anonymous(compared: Compared) -> Compared:
    """Leave machine and paths out of the records, once it is known which times may be compared."""
    show = partial(disclosed, anonymous=True)
    return replace(
        compared,
        pairs=tuple(
            replace(pair, before=show(pair.before), after=show(pair.after))
            for pair in compared.pairs
        ),
        only_before=tuple(map(show, compared.only_before)),
        only_after=tuple(map(show, compared.only_after)),
    )


def _write_items(items: Iterator[Any], output: TextIO) -> None:
    """Write a list as `json.dumps` does with an indent of 1, two levels deep."""
    import msgspec

    lead = "["
    for item in items:
        # An indent makes `json` ten times as slow.
        data = msgspec.json.format(json.dumps(item, allow_nan=False).encode(), indent=1)
        text = data.decode().replace("\n", "\n  ")
        output.write(f"{lead}\n  {text}")
        lead = ","
    output.write("[]" if lead == "[" else "\n ]")


def _stopped(offence: Offence) -> dict[str, Any]:
    change = _change(offence.change) if offence.change else None
    outcome = offence.found.after.outcome if isinstance(offence.found, Pair) else None
    return {
        "gate": offence.gate.text,
        "scenario": dict(vars(offence.found.scenario)),
        "outcome": outcome,
        "change": change,
    }


def _pair(pair: Pair, only_regressed: bool) -> dict[str, Any]:
    kept: list[MetricChange] = [
        change for change in pair.changes if change.verdict == "regressed" or not only_regressed
    ]
    return {
        "scenario": dict(vars(pair.scenario)),
        "outcome": pair.outcome_verdict,
        "before": pair.before.outcome,
        "after": pair.after.outcome,
        "changes": [_change(change) for change in kept],
    }


def _change(change: MetricChange) -> dict[str, Any]:
    # `asdict` copies each value, and 100,000 scenarios have a million changes.
    ratio = change.ratio and {name: getattr(change.ratio, name) for name in _RATIO}
    return {**{name: getattr(change, name) for name in _CHANGE}, "ratio": ratio}


def _outcome(record: Record) -> dict[str, Any]:
    return {"scenario": dict(vars(record.scenario)), "outcome": record.outcome}
