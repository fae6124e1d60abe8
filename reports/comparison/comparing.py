"""Comparing runs, each with the first: read, compare, judge by gates, and show in four media."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, TextIO

from optprof.profiler.records.privacy import disclosed, masked
from optprof.profiler.records.record import Record
from optprof.profiler.records.store import without_collections
from optprof.profiler.safety.disk import write_text

from ..arithmetic.ratios import Ratio
from ..document import Document, Medium
from .compare import BEFORE_AFTER, Compared, MetricChange, Pair, compare_sides
from .disjoint import disjoint_text
from .gate import Gate, Offence, left_open, offences, per_cent
from .sides import read_side

SCHEMA = 1
_CHANGE = tuple(each.name for each in fields(MetricChange))
_RATIO = tuple(each.name for each in fields(Ratio))


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparing:
    """A comparison of two runs, those of `more` runs with the same first one, and the gates.

    `stopped` are the offences against the gates. `left_open` are figures that a gate cannot judge,
    such as noisy times. `unjudged` lists damage, which stops every gate: a line that cannot be read
    may be the newest record of a scenario. All three are empty without gates.
    """

    compared: Compared
    more: Sequence[Compared] = ()
    stopped: Sequence[Offence]
    left_open: Sequence[Offence] = ()
    unjudged: Sequence[str] = ()

    @classmethod
    @without_collections()
    def of(
        cls,
        before: Path,
        after: Path,
        gates: Sequence[str],
        *,
        more: Sequence[Path] = (),
        threshold: str = "5%",
        across_machines: bool = False,
        anonymous: bool = False,
    ) -> "Comparing":
        """Compare runs, or folders of runs, with the first one.

        ValueError for an invalid gate or threshold, OSError for a folder without runs.
        """
        limits, share = [Gate.parse(text) for text in gates], per_cent(threshold)
        first, names = read_side(before), _names([before, after, *more], anonymous=anonymous)
        compared = [
            compare_sides(
                first,
                read_side(path),
                threshold=share,
                across_machines=across_machines,
                names=(names[0], name),
            )
            for path, name in zip((after, *more), names[1:], strict=True)
        ]
        compared = [_anonymous(each) if anonymous else each for each in compared]
        return cls(
            compared=compared[0],
            more=compared[1:],
            stopped=[] if disjoint_text(compared) else _stopped(compared, limits),
            left_open=[each for one in compared for each in left_open(one, limits)],
            unjudged=tuple(dict.fromkeys(each for one in compared for each in one.damage))
            if limits
            else (),
        )

    @property
    def all(self) -> Sequence[Compared]:
        """All comparisons."""
        return (self.compared, *self.more)

    @property
    def disjoint(self) -> str:
        """The sentence that says that no run has a scenario of the first; empty otherwise."""
        return disjoint_text(self.all)

    def __repr__(self) -> str:
        from .document import summaries

        return f"<{'; '.join(summaries(self.all))}>"

    def _repr_html_(self) -> str:
        """Return the tables for a notebook."""
        from .. import html

        return html.fragment(self._document("markdown", only_regressed=False))

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
        from ..pictures.drawing import FOR_PAPER, draw
        from .document import comparison_pictures

        document = self._document("page", only_regressed, command)
        drawings = [draw(picture, FOR_PAPER) for picture in comparison_pictures(self.all)]
        write_text(page, html.render(document, drawings))

    @without_collections()
    def _document(
        self, medium: Medium, only_regressed: bool, command: Sequence[str] = ()
    ) -> Document:
        from .document import comparison_document

        return comparison_document(
            self.all,
            self.stopped,
            self.left_open,
            medium,
            command=command,
            only_regressed=only_regressed,
        )

    @without_collections()
    def write_json(self, output: TextIO, *, only_regressed: bool = False) -> None:
        """Write the comparison as JSON, item by item: 100,000 scenarios take 250 MB.

        `schema` comes first; bytes are whole, times in seconds, a ratio has the ends of its
        interval. `error` says that the runs have no scenario in common.
        """
        error = {"error": self.disjoint} if self.disjoint else {}
        if not self.more:
            _write_members(self._members(self.compared, only_regressed) | error, output)
            output.write("\n")
            return
        lead = "".join(f"\n {json.dumps(name)}: {json.dumps(error[name])}," for name in error)
        output.write(f'{{\n "schema": {SCHEMA},{lead}\n "comparisons": [')
        for number, each in enumerate(self.all):
            output.write("," if number else "")
            before, after = each.names
            members = self._members(each, only_regressed)
            _write_members({"before": before, "after": after, **members}, output)
        output.write("]\n}\n")

    def _members(self, compared: Compared, only_regressed: bool) -> dict[str, Any]:
        """Return the members of a comparison's JSON; long lists are iterators."""
        pairs = (_pair(pair, only_regressed) for pair in compared.pairs)
        return {
            "schema": SCHEMA,
            "threshold": float(compared.threshold),
            "superseded": compared.superseded,
            "damage": list(compared.damage),
            "stopped": (_offence(each) for each in self.stopped if each.names == compared.names),
            "not_judged": (
                {**_offence(each), "reason": each.reason}
                for each in self.left_open
                if each.names == compared.names
            ),
            "pairs": (
                pair
                for pair in pairs
                if not only_regressed or pair["changes"] or pair["outcome"] == "regressed"
            ),
            "only_before": map(_outcome, compared.only_before),
            "only_after": map(_outcome, compared.only_after),
        }


def _stopped(compared: Sequence[Compared], gates: Sequence[Gate]) -> list[Offence]:
    return [offence for each in compared for offence in offences(each, gates)]


def _names(runs: Sequence[Path], *, anonymous: bool) -> Sequence[str]:
    """The names of the runs in tables: two are before and after, more have those of their folders.

    Letters stand for folders of equal names, and for those of an anonymous comparison.
    """
    if len(runs) == 2:
        return BEFORE_AFTER
    names = [masked(run.absolute().name) for run in runs]
    if anonymous or len({*names}) < len(names):
        return [_letters(number) for number in range(len(runs))]
    return names


def _letters(number: int) -> str:
    """A, B, ... Z, AA, AB."""
    rest, last = divmod(number, len(ascii_uppercase))
    return (_letters(rest - 1) if rest else "") + ascii_uppercase[last]


def _anonymous(compared: Compared) -> Compared:
    """Leave machine and paths out of the records, after the machines were compared."""
    show = partial(disclosed, anonymous=True)
    return replace(
        compared,
        damage=tuple(masked(each, anonymous=True) for each in compared.damage),
        pairs=tuple(
            replace(pair, before=show(pair.before), after=show(pair.after))
            for pair in compared.pairs
        ),
        only_before=tuple(map(show, compared.only_before)),
        only_after=tuple(map(show, compared.only_after)),
    )


def _write_members(members: Mapping[str, Any], output: TextIO) -> None:
    """Write an object member by member, and its lists item by item."""
    lead = "{"
    for name, value in members.items():
        output.write(f"{lead}\n {json.dumps(name)}: ")
        lead = ","
        if isinstance(value, Iterator):
            _write_items(value, output)
        else:
            output.write(json.dumps(value, allow_nan=False))
    output.write("\n}")


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


def _offence(offence: Offence) -> dict[str, Any]:
    change = change_data(offence.change) if offence.change else None
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
        "changes": [change_data(change) for change in kept],
    }


def change_data(change: MetricChange) -> dict[str, Any]:
    """Return a change as JSON-ready data."""
    # `asdict` copies each value, and 100,000 scenarios have a million changes.
    ratio = change.ratio and {name: getattr(change.ratio, name) for name in _RATIO}
    return {**{name: getattr(change, name) for name in _CHANGE}, "ratio": ratio}


def _outcome(record: Record) -> dict[str, Any]:
    return {"scenario": dict(vars(record.scenario)), "outcome": record.outcome}
