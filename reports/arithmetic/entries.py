"""Entries: the records of a run, joined into one line per optimizer and setting."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from optprof.profiler.records.record import Memory, Record, StepEstimate
from optprof.scenarios.spec import DType, Scenario

from .labels import OptimizerKey, dtype_name, labels, model_traits, optimizer_key, training_traits
from .times import Spread


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an optimizer is set to work on; only entries of one setting are compared."""

    model: str
    dtype: DType | None
    batch_size: int
    sequence_length: int | None
    model_traits: tuple[str, ...] = ()
    training_traits: tuple[str, ...] = ()
    dtype_name: str = field(default="own", compare=False)

    @classmethod
    def of(cls, scenario: Scenario, memory: Memory | None = None) -> "Setting":
        """The setting that a scenario asks for; `memory` knows the dtypes that a factory chose."""
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
        """The setting but for its model, in words."""
        length = () if self.sequence_length is None else (f"{self.sequence_length:,} tokens",)
        # A factory that takes no batch size makes its batch as large as it likes.
        batch = () if ":" in self.model and self.batch_size == 1 else (f"batch {self.batch_size}",)
        return *self.model_traits, self.dtype_name, *batch, *length, *self.training_traits


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimizer in one setting: the record that tells its bytes and the record that tells its
    times, where there are such.
    """

    setting: Setting
    label: str
    bytes_from: Record | None
    times_from: Record | None

    @property
    def record(self) -> Record:
        """The record that the entry stands on: that of its bytes if it has one."""
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
        """The bytes, None where no record tells them."""
        return self.bytes_from.memory if self.bytes_from else None

    @property
    def state_bytes(self) -> int | None:
        """Exact bytes of the optimizer's state."""
        return self.memory.optimizer_state if self.memory else None

    @property
    def bytes_per_parameter(self) -> float | None:
        """Bytes of state that the optimizer keeps for one parameter of the model."""
        count = self.bytes_from.parameter_count if self.bytes_from else None
        return self.state_bytes / count if count and self.state_bytes is not None else None

    @property
    def peak_bytes(self) -> int | None:
        """The most that was allocated in a training step; the workload "state" has none to
        tell of.
        """
        return (
            self.memory.peak_allocated
            if self.memory and self.scenario.workload == "train"
            else None
        )

    @property
    def peak_upper(self) -> int | None:
        """The upper end of that peak where it is a range, for what cuDNN may take."""
        return (
            self.memory.peak_allocated_upper
            if self.memory and self.peak_bytes is not None
            else None
        )

    @cached_property
    def step(self) -> Spread | None:
        """The times of the optimizer's step."""
        samples = (self.times_from.times or {}).get("step") if self.times_from else None
        return Spread.of(samples) if samples else None

    @property
    def estimate(self) -> StepEstimate | None:
        """What a step would take on the GPU that the scenario names, None where it names none."""
        return self.bytes_from.estimate if self.bytes_from else None


def entries(records: Sequence[Record]) -> list[Entry]:
    """One entry for each optimizer, setting and implementation whose bytes are known, in the order
    of the run.

    Records of whole training steps make entries; the smaller records of workload "state" do so only
    in a run that has no others. A time is set beside bytes of its own implementation if there are
    any, else beside the others. Failed records make none.
    """
    names = labels(records)
    found = [record for record in records if record.outcome == "ok"]
    subjects: dict[tuple[Setting, OptimizerKey], list[Record]] = {}
    for record in [record for record in found if record.scenario.workload == "train"] or found:
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


def question(record: Record) -> tuple[Setting, OptimizerKey, str]:
    """What a simulation and a measurement have in common that ask the same."""
    return _setting(record), optimizer_key(record.scenario), record.scenario.implementation


def _setting(record: Record) -> Setting:
    return Setting.of(record.scenario, record.memory)


def failures(records: Iterable[Record]) -> list[Record]:
    """The records whose outcome is not ok."""
    return [record for record in records if record.outcome != "ok"]


def by_setting(entries: Iterable[Entry]) -> dict[Setting, list[Entry]]:
    """The entries of each setting, in the order of the run."""
    groups: dict[Setting, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.setting, []).append(entry)
    return groups


def setting_names(settings: Iterable[Setting]) -> dict[Setting, str]:
    """A name for each setting: its model, and what differs between settings of that model."""
    traits = {setting: setting.traits for setting in dict.fromkeys(settings)}
    common: dict[str, set[str]] = {}
    for setting, found in traits.items():
        common.setdefault(setting.model, set(found)).intersection_update(found)
    return {
        setting: " · ".join(
            (setting.model, *(trait for trait in found if trait not in common[setting.model]))
        )
        for setting, found in traits.items()
    }


def _joined(setting: Setting, label: str, records: Sequence[Record]) -> list[Entry]:
    holding = [record for record in records if record.memory]
    # A CPU tells no peaks: its bytes are used only where nothing else is known.
    peaking = [
        record for record in holding if record.memory and record.memory.peak_allocated is not None
    ]
    with_bytes = _by_implementation(peaking or holding, lambda record: record.origin == "measured")
    timed = [record for record in records if record.times and record.course is None]
    with_times = _by_implementation(timed, lambda record: record.scenario.device == "cuda")
    stray = next(
        (
            record
            for implementation, record in with_times.items()
            if implementation not in with_bytes
        ),
        None,
    )
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
    """The first preferred record of each implementation, or its first."""
    chosen: dict[str, Record] = {}
    for record in records:
        held = chosen.get(record.scenario.implementation)
        if held is None or (preferred(record) and not preferred(held)):
            chosen[record.scenario.implementation] = record
    return chosen
