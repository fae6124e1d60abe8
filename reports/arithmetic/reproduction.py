"""Reproduction: the published figures of the SGD-SaI paper and ours.

Its figure "speed_memory_growth" (arXiv 2412.11768) shows the allocator's bytes for the state after
one fp32 step on a fresh device: our `optimizer_state_allocated` with the workload "state". It also
shows the time of a step, by a host clock that did not wait for the device.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from optprof.profiler.records.record import Record

from ..units import difference_text, gib
from .labels import unusual_options

# This command gives our side of the figure, for these optimizers; the last two come with the extra
# "zoo".
COMMAND = (
    "optprof profile vit-s16 vit-h14 gpt2-xl llama2-7b -o adamw,sgd-sai,adam-mini,prodigy"
    " --workload state --device sim"
)
# The GPU that the figure was made on.
PUBLISHED_GPU = "a100-80"
COMMAND_GIVES = ("adamw", "sgd-sai", "adam-mini", "prodigy")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One mark of the paper's figure; its authors did not measure the `extrapolated` ones."""

    model: str
    parameters: float
    optimizer: str
    state_gib: float
    step_seconds: float
    extrapolated: bool


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """A published figure and ours, in exact bytes."""

    published: Published
    record: Record
    allocated_bytes: int

    @property
    def difference_gib(self) -> float:
        """Ours less theirs, in GiB."""
        return gib(self.allocated_bytes) - self.published.state_gib

    @property
    def difference_percent(self) -> float:
        """Ours less theirs, in per cent of theirs."""
        return 100 * self.difference_gib / self.published.state_gib


@cache
def published() -> tuple[Published, ...]:
    """Return the paper's figures, in the order of the file that ships with the package."""
    text = (files("optprof.reports") / "data" / "sgd_sai_figure4.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(
        Published(
            model=row["model"],
            parameters=float(row["parameters_billion"]) * 1e9,
            optimizer=row["optimizer"],
            state_gib=float(row["state_gib"]),
            step_seconds=float(row["step_ms"]) / 1e3,
            extrapolated=row["extrapolated"] == "yes",
        )
        for row in rows
    )


def reproduction(records: Sequence[Record]) -> list[Reproduced]:
    """Return the published figures for which this run has a record."""
    ours = {
        (record.scenario.model, record.scenario.optimizer): record
        for record in reversed(records)
        if _comparable(record)
    }
    rows = []
    for row in published():
        record = ours.get((row.model, row.optimizer))
        if record and record.memory and record.memory.optimizer_state_allocated is not None:
            rows.append(
                Reproduced(
                    published=row,
                    record=record,
                    allocated_bytes=record.memory.optimizer_state_allocated,
                )
            )
    return rows


def reproduced_times(records: Sequence[Record]) -> list[tuple[Published, Record]]:
    """Return the published step times for which this run has an estimate on the figure's GPU.

    Any implementation counts, and also a step that does not fit into the GPU's memory: the figure
    has extrapolated marks too.
    """
    return [
        (row, record)
        for row in published()
        for record in records
        if (record.scenario.model, record.scenario.optimizer) == (row.model, row.optimizer)
        and record.scenario.dtype == "fp32"
        and record.estimate is not None
        and record.estimate.gpu == PUBLISHED_GPU
        and not unusual_options(record)
    ]


def not_reproduced(rows: Sequence[Reproduced]) -> dict[str, list[str]]:
    """Return the models of the published figures that have no row, by optimizer."""
    done = [row.published for row in rows]
    missing: dict[str, list[str]] = {}
    for row in published():
        if row not in done:
            missing.setdefault(row.optimizer, []).append(row.model)
    return missing


def residuals(rows: Sequence[Reproduced]) -> str:
    """Return a sentence on the differences from the measured figures, empty without any."""
    measured = [row for row in rows if not row.published.extrapolated]
    if not measured:
        return ""
    low, high = (
        f"{difference_text(end([row.difference_percent for row in measured]), 1)} %"
        for end in (min, max)
    )
    furthest = max(measured, key=lambda row: abs(row.difference_gib))
    where = f"{furthest.published.optimizer} on {furthest.published.model}"
    return (
        f"Of {len(measured)} measured figures ours differ by {low} to {high}, most by"
        f" {difference_text(furthest.difference_gib)} GiB for {where}; the paper prints two"
        " decimals."
    )


def _comparable(record: Record) -> bool:
    scenario, memory = record.scenario, record.memory
    return (
        record.outcome == "ok"
        and (scenario.workload, scenario.dtype) == ("state", "fp32")
        and memory is not None
        and memory.optimizer_state_allocated is not None
        and not unusual_options(record)
    )
