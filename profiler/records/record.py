"""Record: the result for one scenario, as plain data that JSON can hold.

The field names are a contract with every report, script and gate that reads `records.jsonl`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from optprof.scenarios import schema
from optprof.scenarios.schema import Count, Counts, Loss, Name, Samples, Seconds, Text, Texts, Whole
from optprof.scenarios.spec import Scenario

SCHEMA = 1
# How every line of this schema begins.
BEGINNING = f'{{"schema": {SCHEMA}, '.encode()
# A slice of one parameter of the largest models.
LEAST_SHARE = 1e-15
# What an anonymous record leaves out of its environment.
OF_THE_MACHINE = ("machine", "platform", "affinity", "git_commit")

Origin = Literal["measured", "simulated", "estimated"]
Outcome = Literal["ok", "out-of-memory", "failed", "killed", "timeout"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Processor, memory and GPU of a machine; None is unknown, and no GPU for `gpu`."""

    cpu: Text | None = None
    cores: Count | None = None
    memory_bytes: Count | None = None
    gpu: Text | None = None
    gpu_memory_bytes: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Circumstances of a record: time, command, versions and machine; None is unknown.

    `seed` is the scenario's, and None if the record is of a watched training loop, which sets its
    own seeds. `threads` is torch's number of threads, `affinity` the processors that the process
    could run on. `keeps_freed_memory` tells whether the C library kept the memory that it freed.
    `versions` has those of optprof, torch, transformers and numpy. An `anonymous` environment
    leaves OF_THE_MACHINE out.
    """

    time: Text | None = None
    command: Texts = ()
    seed: Whole | None = 0
    threads: Count | None = None
    affinity: Annotated[tuple[Count, ...], Meta(max_length=schema.MOST_ITEMS)] | None = None
    keeps_freed_memory: bool | None = None
    python: Text | None = None
    platform: Text | None = None
    versions: Mapping[str, Text] = field(default_factory=dict)
    machine: Machine | None = None
    git_commit: Text | None = None
    anonymous: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the environment as JSON-ready data, without what an anonymous one leaves out."""
        data = asdict(self)
        for name in OF_THE_MACHINE if self.anonymous else ("anonymous",):
            del data[name]
        return data


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that training holds; all counts are exact bytes.

    `parameters`, `gradients` and `optimizer_state` count tensors, shared storage once.
    `optimizer_state_allocated` counts the allocator's blocks that hold the state when the last step
    ends; tensors on the host, such as Adam's step counts, have no block. `peak_by_category` splits
    `peak_allocated` at its moment and sums to it. `peak_by_phase` is the highest `allocated` of
    each phase. Counts that a device does not report are None or empty. If a simulated device runs
    out of memory, tensors are counted as training would need them, and blocks up to that moment;
    `needed` is then the peak of reserved bytes that the steps would reach on an unlimited device.
    Older records leave it empty.

    The simulated peaks of a model with convolutions or recurrent layers are ranges.
    `peak_allocated` and `peak_reserved` are their lower ends, the least that cuDNN takes;
    `peak_allocated_upper` and `peak_reserved_upper` are the peaks on an unlimited device if each
    workspace is as large as it may be. The upper ends are None in measured records, for models
    without such layers, and if the device ran out of memory.

    `parameters_by_dtype` splits `parameters` by torch's names of dtypes, as {"float32": 512}; older
    records leave it empty.
    """

    parameters: Count
    gradients: Count
    optimizer_state: Count
    state_by_key: Counts
    state_by_key_dtype: Annotated[Mapping[Text, Counts], Meta(max_length=schema.MOST_ITEMS)]
    optimizer_state_allocated: Count | None = None
    peak_allocated: Count | None = None
    peak_reserved: Count | None = None
    peak_allocated_upper: Count | None = None
    peak_reserved_upper: Count | None = None
    peak_phase: Name | None = None
    peak_by_category: Counts
    peak_by_phase: Counts
    needed: Count | None = None
    parameters_by_dtype: Counts = field(default_factory=dict)

    @property
    def resident(self) -> int:
        """Bytes of the tensors that stay from one step to the next."""
        return self.parameters + self.gradients + self.optimizer_state


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """Time of the optimizer's step on a GPU of the catalogue, computed from its kernels.

    `seconds` is the whole step; `floor_seconds` is the least that any step with these results could
    take: it moves `needed_bytes` once, at the peak of the memory's bandwidth. `needed_bytes` counts
    each tensor of parameters, gradients and state that is read and each that is written.
    `moved_bytes` is what the kernels read and write, `launches` their number, `synchronisations`
    how often the host waits for the device.
    """

    gpu: Name
    seconds: Seconds
    floor_seconds: Seconds
    moved_bytes: Count
    needed_bytes: Count
    launches: Count
    synchronisations: Count

    def __post_init__(self) -> None:
        schema.require_seconds((self.seconds,), "seconds")
        schema.require_seconds((self.floor_seconds,), "floor_seconds")


@dataclass(frozen=True, kw_only=True)
class Level:
    """Bytes by one counter: at the end of a phase, and at its peak."""

    end: Count
    peak: Count


@dataclass(frozen=True, kw_only=True)
class StateBlocks:
    """Why CUDA's allocated bytes differ from those of the state's tensors.

    `delta` is the rise of `memory_allocated` in the first step, plus the blocks of state that
    existed before it (Adagrad's). Of the tensors' bytes, `on_host` never reach the device;
    `rounding` is how much larger the blocks of the others are than their tensors.
    """

    tensors: Count
    on_host: Count
    rounding: Whole
    delta: Whole

    @property
    def allocated(self) -> int:
        """Bytes of the blocks that hold the state."""
        return self.tensors - self.on_host + self.rounding

    @property
    def other(self) -> int:
        """Bytes of the delta that are not state, such as workspaces.

        Negative if the step has freed more than it left.
        """
        return self.delta - self.allocated


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """Readings of a GPU at one moment by its management library; None is not reported.

    `slowed_by` names what holds its clock down. `process_bytes` is what the driver counts for this
    process, with CUDA's context.
    """

    clock_mhz: Count | None
    memory_clock_mhz: Count | None
    temperature_celsius: Whole | None
    slowed_by: Texts
    other_processes: Count | None
    process_bytes: Count | None


@dataclass(frozen=True, kw_only=True)
class StepOperation:
    """Calls and time of one kind of operation in a single `step`, by torch.profiler.

    `seconds` are the device's or, on the CPU, the operation's own. `bytes` is what its calls read
    and write if each tensor moves once, counted as for an estimate; None is unknown.
    """

    name: Text
    calls: Count
    seconds: Seconds
    bytes: Count | None

    def __post_init__(self) -> None:
        schema.require_seconds((self.seconds,), "seconds")


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Findings of real iterations that are not timed.

    `samples` are the sequences or images of one iteration, on all ranks. `tokens` are the tokens
    that it reads, None for models that read none. `memory` has exact bytes by phase and counter: on
    CUDA the allocator's "allocated", "reserved", "requested" and "active", on the CPU "tensors"
    (living tensors and the memory that kernels take) and "resident" (the process).
    `tensors_at_peak` splits the highest "tensors". `gpu` was read while the timed iterations ran.
    `warnings` name what disturbed the times, and what could not be watched.
    """

    samples: Count | None = None
    tokens: Count | None = None
    memory: Mapping[Text, Mapping[Text, Level]] = field(default_factory=dict)
    tensors_at_peak: Counts = field(default_factory=dict)
    state_blocks: StateBlocks | None = None
    gpu: tuple[GpuReading, ...] = ()
    operations: tuple[StepOperation, ...] = ()
    warnings: Texts = ()


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Mean loss after so many micro-batches, on text that is never trained on.

    The loss is None if it was not finite.
    """

    micro_batches: Count
    loss: Loss | None


@dataclass(frozen=True, kw_only=True)
class Course:
    """A training run on text under an accumulation.

    `draws` has the micro-batches of each optimizer step, in order. `ended` has the number, from 1,
    of the micro-batch that each step followed; older records leave it empty. `losses` has the loss
    of every micro-batch, None if it was not finite. `added_bytes` is the most that the
    accumulation's own tensors held between micro-batches. `dropped` counts the micro-batches that
    were lost because they were not finite.
    """

    draws: Annotated[tuple[Count, ...], Meta(max_length=schema.MOST_ITEMS)]
    ended: Annotated[tuple[Count, ...], Meta(max_length=schema.MOST_ITEMS)] = ()
    losses: Annotated[tuple[Loss | None, ...], Meta(max_length=schema.MOST_ITEMS)]
    held_out: Annotated[tuple[HeldOut, ...], Meta(max_length=schema.MOST_ITEMS)]
    added_bytes: Count
    dropped: Count

    def __post_init__(self) -> None:
        # A report would divide by their number, or look them up.
        if not self.losses or not self.held_out:
            raise ValueError("losses and held_out have one number or more, got none")
        if self.ended and len(self.ended) != len(self.draws):
            raise ValueError(
                f"ended has a number for each of {len(self.draws)} draws, got {len(self.ended)}"
            )


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Calls of a collective operation in one phase of a training step.

    `group` is the number of ranks that take part. `bytes` is the size of the whole tensors that are
    gathered, reduced or sent, over all calls.
    """

    phase: Name
    operation: Name
    group: Count
    calls: Count
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """Exact bytes that one rank held; peaks are None where the device does not report them."""

    rank: Count
    parameters: Count
    gradients: Count
    optimizer_state: Count
    peak_allocated: Count | None = None
    peak_reserved: Count | None = None

    @property
    def weight(self) -> tuple[int, int]:
        """The numbers that order ranks: the peak, then the bytes of tensors."""
        tensors = self.parameters + self.gradients + self.optimizer_state
        return self.peak_allocated or 0, tensors


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Findings about the ranks of a training run.

    `exchanges` are those of one simulated step. `elements` has, for each rank of a simulated run,
    the elements of the parameters whose optimizer state it keeps. `each` has the bytes of every
    rank of a measured run, and `slowest` the rank whose times the record has.
    """

    exchanges: Annotated[tuple[Exchange, ...], Meta(max_length=schema.MOST_ITEMS)] = ()
    elements: Annotated[tuple[Count, ...], Meta(max_length=schema.MOST_ITEMS)] = ()
    each: Annotated[tuple[RankBytes, ...], Meta(max_length=schema.MOST_ITEMS)] = ()
    slowest: Count | None = None

    @property
    def fullest(self) -> RankBytes | None:
        """The measured rank with the highest peak, or the most bytes where peaks are unknown."""
        return max(self.each, key=lambda one: one.weight, default=None)

    @property
    def differ(self) -> bool:
        """Return whether ranks hold different amounts of state."""
        states = [each.optimizer_state for each in self.each]
        return len(set(self.elements)) > 1 or len(set(states)) > 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """Result of a scenario: origin, outcome, bytes, seconds and environment.

    `model_family` ("gpt2") names the models that a curve over sizes may join; it is None for other
    models. `times` and `warmup` hold raw samples in seconds by phase ("forward", "backward",
    "step"; "iteration" is all of them). If `origin` is "estimated", the step was timed on
    `measured_share` of the parameters and its samples divided by that share. A
    simulated training step has an `estimate` for the scenario's GPU, or without one for
    `hardware.DEFAULT_GPU`; older records have it only with a GPU. `watched` has what real
    iterations showed in addition to their times. A record has a `course` if the scenario asks to
    accumulate: its `times` are then by micro-batch, "draw" those of decisions not to step. It has
    `ranks` if several processes share the work: a simulated record's `memory` is that of
    `scenario.rank`, a measured one's that of the rank with the highest peak, or the most bytes.
    `deciding_options` has the options that decide the bytes of the optimizer's state, each with its
    default; it is None in older records and for optimizers outside the catalogue. `place` orders
    the records of a run as its scenarios were planned; they may end in another order. Older records
    and those of watched loops have none.

    `error` is one line if `outcome` is not "ok". `log` is the file, below the run's folder, with
    all that the scenario's process printed. `warnings` are lines on uncertain counts, such as a
    simulated step that depends on values. `lost` names files of this record that could not be kept,
    with the reason, such as a timeline that did not fit on the disk.
    """

    scenario: Scenario
    origin: Origin
    outcome: Outcome = "ok"
    model_family: Name | None = None
    parameter_count: Count | None = None
    memory: Memory | None = None
    times: Mapping[Text, Samples] | None = None
    warmup: Mapping[Text, Samples] | None = None
    measured_share: Annotated[float, Meta(ge=LEAST_SHARE, le=1.0)] | None = None
    estimate: StepEstimate | None = None
    watched: Watched | None = None
    course: Course | None = None
    ranks: Ranks | None = None
    deciding_options: Mapping[Text, Any] | None = None
    place: Count | None = None
    warnings: Texts = ()
    lost: Texts = ()
    error: Text | None = None
    log: Text | None = None
    environment: Environment

    @property
    def is_of_own_loop(self) -> bool:
        """Return whether the record is of a user's training loop, which sets its own seeds."""
        return self.origin == "measured" and self.environment.seed is None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready data, `schema` first."""
        return {"schema": SCHEMA, **asdict(self), "environment": self.environment.to_dict()}

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps({"schema": SCHEMA, **_fields(self)}, allow_nan=False, default=_fields)

    def to_line(self) -> bytes:
        """Return the record as a line of a run's file.

        ValueError, in one line, for a record that could not be read again.
        """
        try:
            schema.read(Record, self.to_dict())
            line = self.to_json().encode() + b"\n"
            Record.from_line(line)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"a record of {schema.shown(self.scenario.optimizer)} cannot be kept: {error}"
            ) from error
        return line

    @classmethod
    def from_line(cls, line: bytes) -> "Record":
        """Return the record of a line; ValueError says in one line what is wrong."""
        if len(line) > schema.MOST_LINE_BYTES:
            raise ValueError(f"a record has at most {schema.MOST_LINE_BYTES} bytes, got more")
        if line.startswith(BEGINNING):
            try:
                return _read(_decoder().decode(line))
            except (ValueError, RecursionError):
                pass  # The data as a whole say where they are wrong.
        return cls.from_dict(schema.parse_json(line))

    @classmethod
    def from_dict(cls, data: Any) -> "Record":
        """Return the record that `to_dict` wrote; ValueError names what does not fit the schema."""
        if not isinstance(data, dict):
            raise ValueError(f"a record is a JSON object, got {type(data).__name__}")
        schema.require_version(data.get("schema"), SCHEMA, "schema")
        try:
            return _read(schema.read(cls, data))
        except ValueError as error:
            raise ValueError(f"not a record: {error}") from error


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a part of a record for JSON; `asdict` would copy every sample."""
    if isinstance(value, Environment):
        return value.to_dict()
    if not is_dataclass(value):
        raise TypeError(f"a record holds plain data, got {type(value).__name__}")
    return {each.name: getattr(value, each.name) for each in fields(value)}


# Older releases named a watched accumulation by its module.
_OLD_WRAPPERS = "optimizers.accumulation."


@cache
def _decoder() -> msgspec.json.Decoder[Record]:
    return msgspec.json.Decoder(Record)


def _read(record: Record) -> Record:
    """Check the times of a record, and name our wrappers as this release does."""
    if record.scenario.optimizer.startswith(_OLD_WRAPPERS):
        name = record.scenario.optimizer.rpartition(":")[2]
        scenario = replace(record.scenario, optimizer=f"optprof.optimizers.accumulation:{name}")
        record = replace(record, scenario=scenario)
    for kind, phases in (("times", record.times), ("warmup", record.warmup)):
        for phase, samples in (phases or {}).items():
            # Most samples are not 0, and then their minimum tells.
            if not samples or min(samples) < schema.LEAST_SECONDS:
                schema.require_seconds(samples, f"{kind}.{phase}")
    return record
