"""Gates: limits on the growth of figures, as state>0, peak>1% or step>5%, in a comparison."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from optprof.profiler.records.record import Record
from optprof.scenarios.schema import shown

from ..explain import METRICS, find
from ..units import GIB, KIB, MIB
from .compare import BEFORE_AFTER, Compared, MetricChange, Pair

UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
_EXPRESSION = re.compile(
    r"\s*([a-z-]+)\s*>\s*(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z%]*)\s*", re.ASCII
)
_PER_CENT = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*%\s*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A figure and the growth that it is allowed: whole bytes, or a share of the earlier value."""

    text: str
    metric: str
    allowed_bytes: Fraction | None = None
    allowed_share: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Return the gate of a text like state>0, peak>64 MiB or step>5%; else ValueError."""
        match = _EXPRESSION.fullmatch(text)
        if match is None:
            raise ValueError(
                f"a gate reads METRIC>NUMBER, as state>0, peak>64MiB or step>5%, got {shown(text)}"
            )
        metric, number, unit = match[1], Fraction(match[2]), match[3]
        kind = find(metric).kind
        if unit == "%":
            return cls(text=text.strip(), metric=metric, allowed_share=number / 100)
        if kind == "seconds":
            raise ValueError(
                f"{metric} is a time and takes a per cent, as {metric}>5%, got {shown(text)}"
            )
        if unit and unit not in UNITS:
            raise ValueError(
                f"bytes come in {', '.join(UNITS)} or as a per cent, got {shown(unit)} in"
                f" {shown(text)}"
            )
        return cls(text=text.strip(), metric=metric, allowed_bytes=number * UNITS[unit or "B"])

    def leaves_open(self, change: MetricChange) -> str:
        """Return why this gate cannot judge the figure, a word or a line; empty if it can."""
        if change.metric != self.metric or self.allowed_share is None:
            return ""
        return change.left_open(self.allowed_share)

    def stops(self, change: MetricChange) -> bool:
        """Return whether this figure grew by more than the gate allows."""
        if self.allowed_bytes is not None:
            return Fraction(change.after) - Fraction(change.before) > self.allowed_bytes
        assert self.allowed_share is not None
        return change.beyond(self.allowed_share)


@dataclass(frozen=True, kw_only=True)
class Offence:
    """A scenario that a gate stops or cannot judge, and the figure; none for a lost result.

    `subject` is the scenario's pair, or the first side's record where the second side has none.
    `names` are those of the two sides, `reason` says why the gate cannot judge.
    """

    gate: Gate
    subject: Pair | Record
    change: MetricChange | None = None
    names: tuple[str, str] = BEFORE_AFTER
    reason: str = ""


def offences(compared: Compared, gates: Sequence[Gate]) -> list[Offence]:
    """List the offences gate by gate; every gate stops a scenario that lost its result or is gone.

    ValueError for a gate that has nothing to judge: it must not pass.
    """
    return [offence for gate in gates for offence in _stopped(compared, gate)]


def left_open(compared: Compared, gates: Sequence[Gate]) -> list[Offence]:
    """List the figures that a gate can neither pass nor stop, gate by gate: noisy times mostly."""
    return [
        Offence(gate=gate, subject=pair, change=change, names=compared.names, reason=reason)
        for gate in gates
        for pair in compared.pairs
        for change in pair.changes
        if (reason := gate.leaves_open(change))
    ]


def per_cent(text: str) -> Fraction:
    """The share of a text like 5%; ValueError for any other."""
    match = _PER_CENT.fullmatch(text)
    if match is None:
        raise ValueError(f"a threshold reads NUMBER%, as 5%, got {shown(text)}")
    return Fraction(match[1]) / 100


def _stopped(compared: Compared, gate: Gate) -> list[Offence]:
    names = compared.names
    lost = [
        Offence(gate=gate, subject=pair, names=names)
        for pair in compared.pairs
        if pair.outcome_verdict == "regressed"
    ]
    # An option with a new default makes another scenario, whose costs must not pass unjudged.
    lost += [
        Offence(gate=gate, subject=record, names=names)
        for record in compared.only_before
        if record.outcome == "ok"
    ]
    changes = [
        (pair, change)
        for pair in compared.pairs
        for change in pair.changes
        if change.metric == gate.metric
    ]
    judged = [(pair, change) for pair, change in changes if change.verdict != "not compared"]
    if not judged and not lost:
        reasons = ", ".join(dict.fromkeys(change.note for _, change in changes if change.note))
        why = f" ({reasons})" if reasons else ""
        raise ValueError(
            f"{gate.text} has nothing to judge: no scenario has {METRICS[gate.metric].title} to"
            f" compare on both sides{why}"
        )
    return lost + [
        Offence(gate=gate, subject=pair, change=change, names=names)
        for pair, change in judged
        if gate.stops(change)
    ]
