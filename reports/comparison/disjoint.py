"""Disjoint runs: those without a scenario in common, and the fields by which they differ."""

from collections.abc import Sequence
from dataclasses import fields

from optprof.profiler.records.record import Record
from optprof.scenarios.spec import Scenario

from ..arithmetic.labels import shortened
from ..words import listed
from .compare import Compared

# A field of more values does not fit into a sentence.
MOST_VALUES = 4


def disjoint_text(compared: Sequence[Compared]) -> str:
    """Say that no run has a scenario of the first, and how they differ; empty if one has."""
    if any(each.pairs for each in compared):
        return ""
    texts = dict.fromkeys(text for each in compared for text in _differences(each))
    differ = f"; they differ in {', '.join(texts)}" if texts else ""
    return f"nothing to compare: the runs have no scenario in common{differ}"


def _differences(compared: Compared) -> list[str]:
    """The fields without a common value: model (gpt2 against tiny)."""
    sides = compared.only_before, compared.only_after
    texts = []
    for field in fields(Scenario):
        before, after = (_values(records, field.name) for records in sides)
        if not {*before} & {*after}:
            texts.append(
                f"{field.name} ({listed(before, MOST_VALUES)} against {listed(after, MOST_VALUES)})"
            )
    return texts


def _values(records: Sequence[Record], field: str) -> list[str]:
    """The different values of a field of the scenarios, as text."""
    values = dict.fromkeys(str(getattr(record.scenario, field)) for record in records)
    return [shortened(value) or "none" for value in values]
