"""Rows of the table of optimizers: what records and checks say about each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from optprof.profiler.records.record import Record

MODELS = ("gpt2-xl", "llama2-7b", "vit-h14")
CPU_MODEL = "gpt2"
FIRST_GPU, SECOND_GPU = "a100-80", "h100-80"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes of an optimizer on one model, and estimated seconds of its step by GPU.

    `peak_upper` is the upper end of a range of peaks, None for a model without convolutions.
    """

    parameters: int
    state: int
    peak: int | None
    peak_upper: int | None
    phase: str
    seconds: Mapping[str, float]

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of state for each parameter of the model."""
        return self.state / self.parameters


@dataclass(frozen=True, kw_only=True)
class Row:
    """One optimizer; `remark` says how it failed, in one line."""

    optimizer: str
    costs: Mapping[str, Cost] = field(default_factory=dict)
    cpu_seconds: float | None = None
    implementation: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""


def rows_of(
    specs: Sequence[str],
    records: Iterable[Record],
    words: Mapping[str, Mapping[str, str]],
    refused: Mapping[str, str],
) -> list[Row]:
    """Return a row for each optimizer, by bytes a parameter on the first model, failures last."""
    by_optimizer: dict[str, list[Record]] = {spec: [] for spec in specs}
    for record in records:
        by_optimizer.get(record.scenario.optimizer, []).append(record)
    rows = [
        _row(
            spec,
            found,
            {check: answers[spec] for check, answers in words.items() if spec in answers},
            refused.get(spec, ""),
        )
        for spec, found in by_optimizer.items()
    ]
    return sorted(rows, key=_place)


def _place(row: Row) -> tuple[bool, float, str]:
    cost = row.costs.get(MODELS[0])
    return cost is None, cost.bytes_per_parameter if cost else 0.0, row.optimizer


def _row(spec: str, records: list[Record], words: Mapping[str, str], refused: str) -> Row:
    costs = {model: cost for model in MODELS if (cost := _cost(records, model))}
    timed = next((one for one in records if one.scenario.device == "cpu"), None)
    samples = (timed.times or {}).get("step") if timed else None
    failures = [
        f"{one.scenario.model} on {one.scenario.device}: {(one.error or one.outcome)}"
        for one in records
        if one.outcome not in ("ok", "out-of-memory")
    ]
    # An error on one model is most often that on all of them.
    return Row(
        optimizer=spec,
        costs=costs,
        cpu_seconds=median(samples) if samples else None,
        implementation=timed.scenario.implementation if timed else "",
        words=words,
        remark=refused or (failures[0].splitlines()[0][:200] if failures else ""),
    )


def _cost(records: Iterable[Record], model: str) -> Cost | None:
    of_model = [one for one in records if one.scenario.model == model]
    whole = next((one for one in of_model if one.scenario.workload == "train"), None)
    if whole is None or whole.memory is None or not whole.parameter_count:
        return None
    return Cost(
        parameters=whole.parameter_count,
        state=whole.memory.optimizer_state,
        peak=whole.memory.peak_allocated,
        peak_upper=whole.memory.peak_allocated_upper,
        phase=(whole.memory.peak_phase or "").replace("_", " "),
        seconds={one.estimate.gpu: one.estimate.seconds for one in of_model if one.estimate},
    )
