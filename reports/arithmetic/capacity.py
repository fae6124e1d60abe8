"""Capacity: the GPUs of the catalogue that a training step fits on, as far as a run's records say.

A peak on an unlimited device, simulated or measured, is compared with the bytes that torch can take
of each GPU. If what was reserved exceeds them and what was allocated does not, the answer depends
on what the allocator can give back in time. Only a simulation on that GPU's own memory tells: a
record whose scenario names the GPU, or `optprof fit`.

The upper end of a range counts: a step fits only with the largest workspaces that cuDNN may take.
"""

from collections.abc import Sequence
from dataclasses import replace

from optprof.profiler.records.fits import Fit
from optprof.profiler.records.record import Record
from optprof.scenarios import hardware
from optprof.scenarios.hardware import Gpu
from optprof.scenarios.nccl import nccl_bytes

from .entries import Setting, ran_out
from .labels import OptimizerKey, optimizer_key


def fits_by_setting(
    records: Sequence[Record], gpus: Sequence[str] | None = None
) -> dict[Setting, list[tuple[str, Fit]]]:
    """Answer for every training step whose peak is known and every GPU of the catalogue.

    The answers, each with its GPU, are grouped by setting. `gpus` names some GPUs to answer for. A
    record that was simulated on a GPU's own memory answers for that GPU in place of others with its
    setting, optimizer and implementation. ValueError for an unknown GPU.
    """
    catalogue = {
        name: hardware.describe(name) for name in (hardware.available() if gpus is None else gpus)
    }
    groups: dict[tuple[Setting, OptimizerKey, str, str], list[Record]] = {}
    for record in filter(_answers, records):
        scenario, own = replace(record.scenario, gpu=None), _own_gpu(record)
        question = Setting.of(scenario, record.memory), optimizer_key(scenario)
        for gpu in catalogue.keys() & {own} if own else catalogue:
            groups.setdefault((*question, scenario.implementation, gpu), []).append(record)
    fits = {key: _fit(group, catalogue[key[-1]]) for key, group in groups.items()}
    batchless = {setting: replace(setting, batch_size=1) for setting, *_ in groups}
    alike: dict[object, list[Fit]] = {}
    for (setting, *rest), fit in fits.items():
        alike.setdefault((batchless[setting], *rest), []).append(fit)
    batches = {key: _batches(of_batches) for key, of_batches in alike.items()}
    by_setting: dict[Setting, list[tuple[str, Fit]]] = {}
    for (setting, *rest), fit in fits.items():
        largest, failing = batches[(batchless[setting], *rest)]
        fit = replace(fit, largest_batch=largest, failing_batch=failing)
        by_setting.setdefault(setting, []).append((str(rest[-1]), fit))
    return by_setting


def lacking(record: Record | None) -> int | None:
    """Return the bytes that a simulated GPU lacks for the record's step; None if not known."""
    if record is None or not ran_out(record) or record.memory is None:
        return None
    gpu, needed = record.scenario.gpu, record.memory.needed
    if needed is None or gpu not in hardware.available():
        return None
    return max(needed - hardware.describe(gpu).usable_bytes, 0) or None


def _batches(alike: Sequence[Fit]) -> tuple[int | None, int | None]:
    """Return the largest batch that fits and the smallest above it that fails, None if unknown."""
    fitting = max((fit.scenario.batch_size for fit in alike if fit.fits), default=None)
    failing = [
        fit.scenario.batch_size
        for fit in alike
        if fit.answer == "fails" and fit.scenario.batch_size > (fitting or 0)
    ]
    return fitting, min(failing, default=None)


def _own_gpu(record: Record) -> str | None:
    """Return the GPU on whose memory the record was simulated."""
    return record.scenario.gpu if record.origin == "simulated" else None


def _answers(record: Record) -> bool:
    """Return whether the record has a training step's peak, or ran out on its own GPU's memory."""
    if record.scenario.workload != "train" or record.memory is None:
        return False
    if record.outcome == "out-of-memory":
        return _own_gpu(record) is not None
    return (
        record.outcome == "ok"
        and record.memory.peak_reserved is not None
        and record.memory.peak_allocated is not None
    )


def _fit(records: Sequence[Record], gpu: Gpu) -> Fit:
    """Return the answer of the best record: on the GPU's own memory, else measured, else first."""
    record = min(
        records, key=lambda record: (_own_gpu(record) is None, record.origin != "measured")
    )
    memory, usable = record.memory, gpu.usable_bytes
    assert memory is not None, "a record that answers has its memory"
    # After running out of memory, what was reserved is only how far the step came.
    reserved = memory.needed if lacking(record) else None
    if record.outcome == "ok":
        reserved = memory.peak_reserved_upper
        reserved = memory.peak_reserved if reserved is None else reserved
    left = None if reserved is None or reserved > usable else usable - reserved
    nccl = nccl_bytes(record.scenario.parallel, record.scenario.ranks)
    return Fit(
        scenario=record.scenario,
        deciding_options=record.deciding_options,
        usable=usable,
        needed=reserved,
        left=left,
        fits_with_nccl=None if left is None or nccl is None else left >= nccl[1],
        may_fit=record.outcome == "ok"
        and reserved is not None
        and (memory.peak_allocated or 0) <= usable < reserved,
        reason=hardware.unsupported(gpu, record.scenario, memory.parameters_by_dtype),
    )
