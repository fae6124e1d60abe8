"""Capacity: which GPUs of the catalogue have room for a training step, as far as a run's records
tell.

A peak that was found on a device without end, simulated or measured, is set against what torch can
take of each GPU. Between what is in use at the peak and what was reserved for it, the answer
depends on what the allocator can give back in time, and only a simulation on that GPU's own memory
tells: a record that names the GPU, or `optprof fit`. The largest batch is told where several were
recorded.

A reserved peak that is a range counts by its upper end: nothing is said to fit whose layers in
cuDNN may need more than there is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from optprof.profiler.records.record import Record
from optprof.scenarios import hardware

from .entries import Setting
from .labels import OptimizerKey, labels, optimizer_key

# What the simulator may be off by: a step that leaves less of what it needs may run out on the
# card.
SPARE = 0.02

Answer = Literal["fits", "tight", "unsure", "fails", "lacking"]


@dataclass(frozen=True, kw_only=True)
class BatchRange:
    """What the recorded batches say of the largest one: the largest that fits and the smallest
    beyond it that fails, None for neither.
    """

    fits: int | None = None
    fails: int | None = None

    @property
    def largest(self) -> int | None:
        """The largest batch where the records settle it: the next one was tried and does not fit; 0
        where a batch of 1 does not.
        """
        if self.fails is not None and self.fails == (self.fits or 0) + 1:
            return self.fits or 0
        return None


@dataclass(frozen=True, kw_only=True)
class Room:
    """Whether one GPU has room for one record's training step; all counts are exact bytes.

    "tight" leaves less than 2 % of what is reserved; "unsure" has room for what is in use at the
    peak and not for all that was reserved around it or may be, with the most that cuDNN takes;
    "lacking" is a GPU that cannot run it at any size, which `reason` explains.

    `left` is what torch would not have reserved, below zero where it lacks that much. `is_own`
    tells that the record was found on this GPU's own memory, which decides. `batches` is what the
    run's records of other batches say.
    """

    label: str
    setting: Setting
    record: Record
    gpu: str
    answer: Answer
    usable: int
    reserved: int | None
    left: int | None
    is_own: bool
    reason: str = ""
    batches: BatchRange = BatchRange()

    @property
    def fits(self) -> bool:
        """Whether the step runs."""
        return self.answer in ("fits", "tight")


def rooms(records: Sequence[Record], gpus: Sequence[str] | None = None) -> list[Room]:
    """The answers for every training step whose peak is known and every GPU of the catalogue, or
    those named; the run's order, then theirs.

    Where a record was found on a GPU's own memory, it answers for that GPU in place of others of
    its setting. ValueError for an unknown GPU.
    """
    asked = [hardware.describe(name) for name in (hardware.available() if gpus is None else gpus)]
    names = labels(records)
    questions: dict[tuple[_Question, str], list[Record]] = {}
    for record in filter(_tells, records):
        question, own = _Question.of(record), _own_gpu(record)
        for gpu in asked:
            if own in (None, gpu.name):
                questions.setdefault((question, gpu.name), []).append(record)
    catalogue = {gpu.name: gpu for gpu in asked}
    found = {
        key: _room(names[key[0].optimizer], group, key[0].setting, catalogue[key[1]])
        for key, group in questions.items()
    }
    return _with_batches(found)


@dataclass(frozen=True)
class _Question:
    """What is asked of every GPU: the setting but for its GPU, the optimizer with its options, and
    how it is run.
    """

    setting: Setting
    optimizer: OptimizerKey
    implementation: str

    @classmethod
    def of(cls, record: Record) -> "_Question":
        scenario = replace(record.scenario, gpu=None)
        return cls(
            Setting.of(scenario, record.memory), optimizer_key(scenario), scenario.implementation
        )


def _with_batches(found: Mapping[tuple[_Question, str], Room]) -> list[Room]:
    """The rooms, each told what those of other batches say of the largest one on its GPU, all else
    being equal.
    """
    alike: dict[tuple[_Question, str], list[Room]] = {}
    keys = [
        (replace(question, setting=replace(question.setting, batch_size=1)), gpu)
        for question, gpu in found
    ]
    for key, room in zip(keys, found.values(), strict=True):
        alike.setdefault(key, []).append(room)
    ranges = {key: _batch_range(rooms) for key, rooms in alike.items()}
    return [
        replace(room, batches=ranges[key]) for key, room in zip(keys, found.values(), strict=True)
    ]


def _batch_range(alike: Sequence[Room]) -> BatchRange:
    fitting = max((room.setting.batch_size for room in alike if room.fits), default=None)
    failing = [
        room.setting.batch_size
        for room in alike
        if room.answer == "fails" and room.setting.batch_size > (fitting or 0)
    ]
    return BatchRange(fits=fitting, fails=min(failing, default=None))


def _own_gpu(record: Record) -> str | None:
    """The GPU on whose memory the record was simulated."""
    return record.scenario.gpu if record.origin == "simulated" else None


def _tells(record: Record) -> bool:
    """Whether the record has a peak of a training step, or has run out on the memory of the GPU
    that it names.
    """
    if record.scenario.workload != "train" or record.memory is None:
        return False
    if record.outcome == "out-of-memory":
        return _own_gpu(record) is not None
    return (
        record.outcome == "ok"
        and record.memory.peak_reserved is not None
        and record.memory.peak_allocated is not None
    )


def _room(label: str, records: Sequence[Record], setting: Setting, gpu: hardware.Gpu) -> Room:
    """The answer of the record that knows best: one on the GPU's own memory, else a measured one,
    else the first.
    """
    record = min(
        records, key=lambda record: (_own_gpu(record) is None, record.origin != "measured")
    )
    memory = record.memory
    assert memory is not None, "a record that tells has its memory"
    reason = hardware.lacking(gpu, record.scenario, memory.parameters_by_dtype)
    # Where the device ran out, what was reserved is only how far it came.
    reserved = memory.peak_reserved if record.outcome == "ok" else None
    if reserved is not None and memory.peak_reserved_upper is not None:
        reserved = memory.peak_reserved_upper
    return Room(
        label=label,
        setting=setting,
        record=record,
        gpu=gpu.name,
        answer="lacking"
        if reason
        else _answer(memory.peak_allocated or 0, reserved, gpu.usable_bytes),
        usable=gpu.usable_bytes,
        reserved=reserved,
        left=None if reserved is None else gpu.usable_bytes - reserved,
        is_own=_own_gpu(record) is not None,
        reason=reason or "",
    )


def _answer(allocated: int, reserved: int | None, usable: int) -> Answer:
    """The answer for a GPU with so many usable bytes; `reserved` is None where the step ran out of
    memory there.
    """
    if reserved is None or allocated > usable:
        return "fails"
    if reserved > usable:
        return "unsure"
    return "fits" if usable - reserved >= SPARE * reserved else "tight"
