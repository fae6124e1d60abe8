"""Entries: the records of a run, joined into one line for each optimizer and setting."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from optprof.profiler.records.record import Memory, Record, StepEstimate
from optprof.scenarios.spec import DType, Scenario

from .labels import OptimizerKey, dtype_name, labels, model_traits, optimizer_key, training_traits
from .times import Spread


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The model and the training that an optimizer works on; only equal settings are compared."""

    model: str
    dtype: DType | None
    batch_size: int
    sequence_length: int | None
    model_traits: tuple[str, ...] = ()
    training_traits: tuple[str, ...] = ()
    dtype_name: str = field(default="own dtype", compare=False)

    @classmethod
    def of(cls, scenario: Scenario, memory: Memory | None = None) -> "Setting":
        """Return the setting of a scenario; `memory` has the dtypes that a factory chose."""
        return cls(
            model=scenario.model,
            dtype=scenario.dtype,
            batch_size=scenario.batch_size,
            sequence_length=scenario.sequence_length,
            model_traits=model_traits(scenario),
            training_traits=training_traits(scenario),
            dtype_name=dtype_name(scenario, memory),
        )

    @property
    def traits(self) -> tuple[str, ...]:
        """The setting in words, without its model."""
        length = () if self.sequence_length is None else (f"{self.sequence_length:,} tokens",)
        # A factory that takes no batch size chooses its own.
        batch = () if ":" in self.model and self.batch_size == 1 else (f"batch {self.batch_size}",)
        return *self.model_traits, self.dtype_name, *batch, *length, *self.training_traits


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimizer in one setting, with the records of its bytes and of its times."""

    setting: Setting
    label: str
    bytes_from: Record | None
    times_from: Record | None

    @property
    def record(self) -> Record:
        """The record of its bytes, or else that of its times."""
        record = self.bytes_from or self.times_from
        assert record is not None, "an entry is made from a record"
        return record

    @property
    def scenario(self) -> Scenario:
        """The scenario of that record."""
        return self.record.scenario

    @property
    def origin(self) -> str:
        """The origin of that record."""
        return self.record.origin

    @property
    def memory(self) -> Memory | None:
        """The bytes, None without a record of them."""
        return self.bytes_from.memory if self.bytes_from else None

    @property
    def state_bytes(self) -> int | None:
        """Exact bytes of the optimizer's state."""
        return self.memory.optimizer_state if self.memory else None

    @property
    def bytes_per_parameter(self) -> float | None:
        """Bytes of state for one parameter of the model."""
        count = self.bytes_from.parameter_count if self.bytes_from else None
        return self.state_bytes / count if count and self.state_bytes is not None else None

    @property
    def peak(self) -> Memory | None:
        """The bytes if they are those of a training step, with its peak."""
        memory = self.memory
        has_peak = memory is not None and memory.peak_allocated is not None
        return memory if has_peak and self.scenario.workload == "train" else None

    @property
    def peak_bytes(self) -> int | None:
        """The most that was allocated in a training step."""
        return self.peak.peak_allocated if self.peak else None

    @property
    def peak_upper(self) -> int | None:
        """The upper end of that peak if it is a range, because of cuDNN's workspaces."""
        return self.peak.peak_allocated_upper if self.peak else None

    @property
    def ran_out(self) -> bool:
        """Return whether the simulated device had too little memory for a step."""
        return self.bytes_from is not None and ran_out(self.bytes_from)

    @cached_property
    def step(self) -> Spread | None:
        """The times of the optimizer's step."""
        samples = (self.times_from.times or {}).get("step") if self.times_from else None
        return Spread.of(samples) if samples else None

    @property
    def estimate(self) -> StepEstimate | None:
        """The estimated step on a GPU, which it names."""
        return self.bytes_from.estimate if self.bytes_from else None


def entries(records: Sequence[Record]) -> list[Entry]:
    """Return an entry for each optimizer, setting and implementation, in the order of the run.

    Entries are made from the results of what was requested. A simulated device that ran out of
    memory gives a state and no peak; other failures give none. If no training step has a result,
    the states of the models that should have been trained take their place. A time joins bytes of
    its own implementation if there are any, else any other bytes.
    """
    names = labels(records)
    asked = requested(records)
    models = {record.scenario.model for record in asked}
    results = [_counted(record) for record in asked if record.outcome == "ok" or ran_out(record)]
    subjects: dict[tuple[Setting, OptimizerKey], list[Record]] = {}
    for record in results or [
        record for record in records if record.outcome == "ok" and record.scenario.model in models
    ]:
        subjects.setdefault((_setting(record), optimizer_key(record.scenario)), []).append(record)
    order = {
        setting: number
        for number, setting in enumerate(dict.fromkeys(setting for setting, _ in subjects))
    }
    unsorted = [
        entry
        for (setting, key), group in subjects.items()
        for entry in _joined(setting, names[key], group)
    ]
    return sorted(unsorted, key=lambda entry: order[entry.setting])


def requested(records: Sequence[Record]) -> list[Record]:
    """Return the records that a run is about: its training steps, whatever became of them.

    The states of a run with training steps extend a curve to models that nobody named. In a run
    without any, the states were requested.
    """
    return [record for record in records if record.scenario.workload == "train"] or list(records)


def ran_out(record: Record) -> bool:
    """Return whether a simulated device ran out of memory; its record has the exact state."""
    return (
        record.outcome == "out-of-memory"
        and record.origin == "simulated"
        and record.memory is not None
    )


def _counted(record: Record) -> Record:
    """Return the record without the counts of blocks that end where the memory did."""
    if record.memory is None or record.outcome == "ok":
        return record
    memory = replace(
        record.memory,
        optimizer_state_allocated=None,
        peak_allocated=None,
        peak_reserved=None,
        peak_phase=None,
        peak_by_category={},
        peak_by_phase={},
    )
    return replace(record, memory=memory)


def question(record: Record) -> tuple[Setting, OptimizerKey, str]:
    """Return a key that a simulation and a measurement of the same question share."""
    return _setting(record), optimizer_key(record.scenario), record.scenario.implementation


def _setting(record: Record) -> Setting:
    return Setting.of(record.scenario, record.memory)


def failures(records: Iterable[Record]) -> list[Record]:
    """Return the records whose outcome is not ok."""
    return [record for record in records if record.outcome != "ok"]


def by_setting(entries: Iterable[Entry]) -> dict[Setting, list[Entry]]:
    """Return the entries of each setting, in the order of the run."""
    groups: dict[Setting, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.setting, []).append(entry)
    return groups


def setting_names(settings: Iterable[Setting]) -> dict[Setting, str]:
    """Name each setting by its model, and by the traits that differ between its settings."""
    traits = {setting: setting.traits for setting in dict.fromkeys(settings)}
    common: dict[str, set[str]] = {}
    for setting, own in traits.items():
        common.setdefault(setting.model, set(own)).intersection_update(own)
    return {
        setting: " · ".join(
            (setting.model, *(trait for trait in own if trait not in common[setting.model]))
        )
        for setting, own in traits.items()
    }


def _joined(setting: Setting, label: str, records: Sequence[Record]) -> list[Entry]:
    counted = [record for record in records if record.memory]
    # The bytes of a CPU have no peak. They are used only without others.
    peaking = [
        record
        for record in counted
        if ran_out(record) or (record.memory and record.memory.peak_allocated is not None)
    ]
    with_bytes = _by_implementation(peaking or counted, lambda record: record.origin == "measured")
    timed = [record for record in records if record.times and record.course is None]
    with_times = _by_implementation(timed, lambda record: record.scenario.device == "cuda")
    stray = next((record for how, record in with_times.items() if how not in with_bytes), None)
    return [
        Entry(
            setting=setting,
            label=f"{label}, {implementation}" if len(with_bytes) > 1 else label,
            bytes_from=with_bytes.get(implementation),
            times_from=with_times.get(implementation, stray),
        )
        for implementation in with_bytes or with_times
    ]


def _by_implementation(
    records: Iterable[Record], preferred: Callable[[Record], bool]
) -> dict[str, Record]:
    """Return the first preferred record of each implementation, or else its first."""
    chosen: dict[str, Record] = {}
    for record in records:
        earlier = chosen.get(record.scenario.implementation)
        if earlier is None or (preferred(record) and not preferred(earlier)):
            chosen[record.scenario.implementation] = record
    return chosen
