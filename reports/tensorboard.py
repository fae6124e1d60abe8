"""TensorBoard: a run as event files: times as scalars, scenarios as HParams, pictures as images."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from time import time as now
from typing import Any

from optprof.profiler.records.record import Record
from optprof.profiler.records.store import file_name
from optprof.profiler.safety.disk import remove, writing
from optprof.profiler.safety.plain import plain

from .arithmetic.labels import dtype_name
from .arithmetic.times import Spread, samples_per_second, tokens_per_second
from .pictures.picture import Drawing

METRICS: Mapping[str, str] = {
    "state/bytes": "bytes of the optimizer's state",
    "memory/peak_allocated_bytes": "most bytes allocated in a training step",
    "step/median_seconds": "median time of the optimizer's step",
    "training/tokens_per_second": "tokens a second",
    "training/samples_per_second": "sequences or images a second",
}
_FIELDS = (
    "model",
    "optimizer",
    "implementation",
    "workload",
    "device",
    "dtype",
    "batch_size",
    "sequence_length",
    "micro_batches",
    "accumulate",
    "steps",
    "seed",
)


def write_tensorboard(records: Sequence[Record], drawings: Iterable[Drawing], folder: Path) -> Path:
    """Write a folder for `tensorboard --logdir`: a run for each scenario, the pictures in `report`.

    Earlier event files of those runs are replaced. ValueError without the package tensorboard, and
    for a symbolic link in the folder's parent, the run; OSError for a folder that cannot be
    written.
    """
    try:
        from tensorboard.plugins.hparams import summary_v2 as hparams
    except ImportError as error:
        raise ValueError(
            'the package tensorboard is not installed; pip install "optprof[tensorboard]"'
        ) from error
    # The last record of a scenario counts.
    standing = {file_name(record.scenario): record for record in records if record.outcome == "ok"}
    for name, record in standing.items():
        trial = hparams.hparams_pb(_hparams(record), trial_id=name, start_time_secs=_time(record))
        _write(folder / name, [(trial, 0), *_scalars(record)], _time(record))
    last = max(map(_time, records), default=0.0)
    names = dict.fromkeys(name for record in standing.values() for name in _hparams(record))
    experiment = hparams.hparams_config_pb(
        [hparams.HParam(name) for name in names],
        [hparams.Metric(name, description=text) for name, text in METRICS.items()],
        time_created_secs=last,
    )
    _write(
        folder / "report", [(experiment, 0), *((_image(drawing), 0) for drawing in drawings)], last
    )
    return folder


def _write(folder: Path, summaries: Iterable[tuple[Any, int]], time: float) -> None:
    """Write an event file of summaries and their steps, in place of earlier ones.

    TensorBoard's own writer follows links, and puts this machine's name into the file's.
    """
    from tensorboard.summary.writer.record_writer import RecordWriter

    event = _message("event_pb2", "Event")
    path = folder / f"events.out.tfevents.{int(now())}.optprof"
    below = folder.parent.parent
    with writing(path, below=below) as file:
        writer = RecordWriter(file)
        writer.write(event(file_version="brain.Event:2", wall_time=time).SerializeToString())
        for summary, step in summaries:
            writer.write(event(summary=summary, step=step, wall_time=time).SerializeToString())
    for old in folder.glob("events.out.tfevents.*"):
        if old != path:
            remove(old)


def _hparams(record: Record) -> dict[str, str | float | bool]:
    """The scenario's fields and options as numbers, booleans and texts."""
    scenario = record.scenario
    values = {name: getattr(scenario, name) for name in _FIELDS} | scenario.added
    values |= {f"options.{name}": value for name, value in scenario.options.items()}
    values["dtype"] = dtype_name(scenario, record.memory)
    shown = {
        plain(name): value if isinstance(value, bool | int | float) else plain(str(value))
        for name, value in values.items()
        if value is not None
    }
    return {**shown, "origin": record.origin}


def _scalars(record: Record) -> Iterable[tuple[Any, int]]:
    """Yield every metric once, and every sample of every phase with its number."""
    for name, value in metrics(record).items():
        yield _scalar(name, value), 0
    for phase, samples in (record.times or {}).items():
        for number, seconds in enumerate(samples):
            yield _scalar(f"seconds/{phase}", seconds), number
    for phase, counters in (record.watched.memory if record.watched else {}).items():
        for counter, level in counters.items():
            yield _scalar(f"peak_bytes/{phase}/{counter}", level.peak), 0


def metrics(record: Record) -> dict[str, float]:
    """The numbers of a record by which TensorBoard compares scenarios."""
    step = (record.times or {}).get("step")
    values = (
        record.memory.optimizer_state if record.memory else None,
        record.memory.peak_allocated if record.memory else None,
        Spread.of(step).median if step else None,
        tokens_per_second(record),
        samples_per_second(record),
    )
    return {
        name: float(value) for name, value in zip(METRICS, values, strict=True) if value is not None
    }


def _scalar(tag: str, value: float) -> Any:
    summary = _message("summary_pb2", "Summary")
    return summary(value=[summary.Value(tag=plain(tag), simple_value=value)])


def _image(drawing: Drawing) -> Any:
    # The first chunk of a PNG, behind its signature, begins with the size.
    width, height = struct.unpack(">II", drawing.png[16:24])
    summary = _message("summary_pb2", "Summary")
    image = summary.Image(
        encoded_image_string=drawing.png, width=width, height=height, colorspace=4
    )
    return summary(value=[summary.Value(tag=drawing.name, image=image)])


def _message(module: str, name: str) -> Any:
    """Return a class of TensorBoard's protocol, which protobuf makes on import."""
    return getattr(import_module(f"tensorboard.compat.proto.{module}"), name)


def _time(record: Record) -> float:
    """The record's time in seconds since 1970; 0 for none."""
    try:
        return datetime.fromisoformat(str(record.environment.time)).timestamp()
    except ValueError:
        return 0.0
