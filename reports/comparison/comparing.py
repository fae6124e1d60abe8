"""Comparing two sides of runs: read them, compare, judge by gates, and show in four media."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from optprof.profiler.records.privacy import disclosed
from optprof.profiler.records.record import Record
from optprof.profiler.records.store import without_collections
from optprof.profiler.safety.disk import write_text

from ..arithmetic.ratios import Ratio
from ..document import Document, Medium
from .compare import Compared, MetricChange, Pair, compare_sides
from .gate import Gate, Offence, offences, per_cent
from .sides import read_side

SCHEMA = 1
_CHANGE = tuple(each.name for each in fields(MetricChange))
_RATIO = tuple(each.name for each in fields(Ratio))


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """A comparison, and the offences against its gates.

    `unjudged` lists damage, which stops every gate: a line that cannot be read may be the newest
    record of a scenario. It is empty without gates.
    """

    compared: Compared
    stopped: Sequence[Offence]
    unjudged: Sequence[str] = ()

    @classmethod
    @without_collections()
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
        """Compare two runs, or two folders of runs.

        ValueError for an invalid gate or threshold, OSError for a folder without runs.
        """
        limits, share = [Gate.parse(text) for text in gates], per_cent(threshold)
        compared = compare_sides(
            read_side(before), read_side(after), threshold=share, across_machines=across_machines
        )
        compared = _anonymous(compared) if anonymous else compared
        return cls(
            compared=compared,
            stopped=offences(compared, limits),
            unjudged=compared.damage if limits else (),
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

    @without_collections()
    def _document(
        self, medium: Medium, only_regressed: bool, command: Sequence[str] = ()
    ) -> Document:
        from .document import comparison_document

        return comparison_document(
            self.compared, self.stopped, medium, command=command, only_regressed=only_regressed
        )

    @without_collections()
    def write_json(self, output: TextIO, *, only_regressed: bool = False) -> None:
        """Write the comparison as JSON, item by item: 100,000 scenarios take 250 MB.

        `schema` comes first; bytes are whole, times in seconds, a ratio has the ends of its
        interval.
        """
        pairs = (_pair(pair, only_regressed) for pair in self.compared.pairs)
        members = {
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
        lead = "{"
        for name, value in members.items():
            output.write(f"{lead}\n {json.dumps(name)}: ")
            lead = ","
            if isinstance(value, Iterator):
                _write_items(value, output)
            else:
                output.write(json.dumps(value, allow_nan=False))
        output.write("\n}\n")


def _anonymous(compared: Compared) -> Compared:
    """Leave machine and paths out of the records, after the machines were compared."""
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
    outcome = offence.subject.after.outcome if isinstance(offence.subject, Pair) else None
    return {
        "gate": offence.gate.text,
        "scenario": dict(vars(offence.subject.scenario)),
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
