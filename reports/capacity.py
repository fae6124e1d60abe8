"""Capacity: which GPUs of the catalogue have room for a training step, as far as a run's records tell.

A peak that was found on a device without end, simulated or measured, is set against what torch can take of each GPU. Between what is in
use at the peak and what was reserved for it, the answer depends on what the allocator can give back in time, and only a simulation on that
GPU's own memory tells: a record that names the GPU, or `optprof fit`. The largest batch is told where several were recorded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from profiler.record import Record
from scenarios import hardware

from .entries import Setting
from .fits import SPARE
from .labels import OptimizerKey, labels, optimizer_key

Answer = Literal["fits", "tight", "unsure", "fails", "lacking"]


@dataclass(frozen=True, kw_only=True)
class Room:
    """Whether one GPU has room for one record's training step; all counts are exact bytes.

    "tight" leaves less than 2 % of what is reserved; "unsure" has room for what is in use at the peak and not for all that was reserved
    around it; "lacking" is a GPU that cannot run it at any size, which `reason` explains. `left` is what torch would not have reserved,
    below zero where it lacks that much. `is_own` tells that the record was found on this GPU's own memory, which decides.
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

    @property
    def fits(self) -> bool:
        """Whether the step runs."""
        return self.answer in ("fits", "tight")


@dataclass(frozen=True, kw_only=True)
class BatchRange:
    """What the recorded batches say of the largest one: the largest that fits and the smallest beyond it that fails, None for neither."""

    fits: int | None
    fails: int | None

    @property
    def largest(self) -> int | None:
        """The largest batch where the records settle it: the next one was tried and does not fit; 0 where a batch of 1 does not."""
        if self.fails is not None and self.fails == (self.fits or 0) + 1:
            return self.fits or 0
        return None


def rooms(records: Sequence[Record], gpus: Sequence[str] | None = None) -> list[Room]:
    """The answers for every training step whose peak is known and every GPU of the catalogue, or those named; the run's order, then theirs.

    Where a record was found on a GPU's own memory, it answers for that GPU in place of others of its setting. ValueError for an unknown
    GPU.
    """
    asked = [hardware.describe(name).name for name in (hardware.available() if gpus is None else gpus)]
    names = labels(records)
    questions: dict[_Question, list[Record]] = {}
    for record in records:
        for gpu in asked if _tells(record) else ():
            if _own_gpu(record) in (None, gpu):
                questions.setdefault(_question(record, gpu), []).append(record)
    return [_room(names[optimizer_key(found[0].scenario)], found, key) for key, found in questions.items()]


def batch_range(found: Iterable[Room], room: Room) -> BatchRange:
    """What the rooms of other batches say of the largest one on that GPU, all else being equal to `room`."""
    alike = [(other.setting.batch_size, other) for other in found if _but_for_batch(other) == _but_for_batch(room)]
    fitting = max((batch for batch, other in alike if other.fits), default=None)
    failing = [batch for batch, other in alike if other.answer == "fails" and batch > (fitting or 0)]
    return BatchRange(fits=fitting, fails=min(failing, default=None))


_Question = tuple[Setting, OptimizerKey, str, str]


def _question(record: Record, gpu: str) -> _Question:
    scenario = replace(record.scenario, gpu=None)
    return Setting.of(scenario), optimizer_key(scenario), scenario.implementation, gpu


def _own_gpu(record: Record) -> str | None:
    """The GPU on whose memory the record was simulated."""
    return record.scenario.gpu if record.origin == "simulated" else None


def _tells(record: Record) -> bool:
    """Whether the record has a peak of a training step, or has run out on the memory of the GPU that it names."""
    if record.scenario.workload != "train" or record.memory is None:
        return False
    if record.outcome == "out-of-memory":
        return _own_gpu(record) is not None
    return record.outcome == "ok" and record.memory.peak_reserved is not None and record.memory.peak_allocated is not None


def _room(label: str, records: Sequence[Record], question: _Question) -> Room:
    """The answer of the record that knows best: one on the GPU's own memory, else a measured one, else the first."""
    gpu = hardware.describe(question[3])
    record = min(records, key=lambda record: (_own_gpu(record) is None, record.origin != "measured"))
    memory = record.memory
    assert memory is not None, "a record that tells has its memory"
    reason = hardware.lacking(gpu, record.scenario)
    # Where the device ran out, what was reserved is only how far it came.
    reserved = memory.peak_reserved if record.outcome == "ok" else None
    return Room(
        label=label,
        setting=question[0],
        record=record,
        gpu=gpu.name,
        answer="lacking" if reason else _answer(memory.peak_allocated or 0, reserved, gpu.usable_bytes),
        usable=gpu.usable_bytes,
        reserved=reserved,
        left=None if reserved is None else gpu.usable_bytes - reserved,
        is_own=_own_gpu(record) is not None,
        reason=reason or "",
    )


def _answer(allocated: int, reserved: int | None, usable: int) -> Answer:
    """The answer for a GPU with so many usable bytes; `reserved` is None where the step ran out of memory there."""
    if reserved is None or allocated > usable:
        return "fails"
    if reserved > usable:
        return "unsure"
    return "fits" if usable - reserved >= SPARE * reserved else "tight"


def _but_for_batch(room: Room) -> tuple[Setting, OptimizerKey, str, str]:
    scenario = room.record.scenario
    return replace(room.setting, batch_size=1), optimizer_key(scenario), scenario.implementation, room.gpu
