"""A record: what was found for one scenario, as plain data that JSON can hold.

The field names are a contract with every report, script and gate that reads `records.jsonl`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Annotated, Any, Literal

from optprof.scenarios import schema
from optprof.scenarios.schema import Between, Count, Loss, Name, Seconds
from optprof.scenarios.spec import Scenario

SCHEMA = 1
# A slice of one parameter of the largest models.
LEAST_SHARE = 1e-15

Origin = Literal["measured", "simulated", "estimated"]
Outcome = Literal["ok", "out-of-memory", "failed", "killed", "timeout"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes held while training; all counts are exact bytes.

    The first three count tensors (shared storage once). `optimizer_state_allocated` counts the
    allocator's blocks that hold the state when the last step ends; host tensors such as Adam's step
    counts have none. `peak_by_category` splits `peak_allocated` at its moment and sums to it;
    `peak_by_phase` is the highest `allocated` seen in each phase. What a device does not tell is
    None or empty. Where a simulated device ran out of memory, tensors are counted as training would
    need them, and blocks as they were up to then.

    The simulated peaks of a model with convolutions or recurrent layers are ranges.
    `peak_allocated` and `peak_reserved` are their lower ends, the least that cuDNN takes;
    `peak_allocated_upper` and `peak_reserved_upper` are the peaks on an unlimited device when each
    workspace is as large as it may be. They are None in measured records, for models without such
    layers, and where the device ran out of memory.

    `parameters_by_dtype` splits `parameters` by torch's names of dtypes, as {"float32": 512}; older
    records leave it empty.
    """

    parameters: Count
    gradients: Count
    optimizer_state: Count
    state_by_key: Mapping[str, Count]
    state_by_key_dtype: Mapping[str, Mapping[str, Count]]
    optimizer_state_allocated: Count | None = None
    peak_allocated: Count | None = None
    peak_reserved: Count | None = None
    peak_allocated_upper: Count | None = None
    peak_reserved_upper: Count | None = None
    peak_phase: Name | None = None
    peak_by_category: Mapping[str, Count]
    peak_by_phase: Mapping[str, Count]
    parameters_by_dtype: Mapping[str, Count] = field(default_factory=dict)

    @property
    def resident(self) -> int:
        """Bytes of the tensors that live from one step to the next."""
        return self.parameters + self.gradients + self.optimizer_state


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """What the optimizer's step would take on a GPU of the catalogue, worked out from its kernels;
    no clock has seen it.

    `seconds` is the whole step; `floor_seconds` the least that any step with these results could
    take: `needed_bytes`, each tensor of parameters, gradients and state that is read and each that
    is written, once, at the peak of the memory's bandwidth. `moved_bytes` is what the kernels read
    and write, `launches` how many there are, `synchronisations` how often the host waits for the
    device.
    """

    gpu: Name
    seconds: Seconds
    floor_seconds: Seconds
    moved_bytes: Count
    needed_bytes: Count
    launches: Count
    synchronisations: Count


@dataclass(frozen=True, kw_only=True)
class Level:
    """Bytes by one counter: when a phase ended, and the most while it ran."""

    end: Count
    peak: Count


@dataclass(frozen=True, kw_only=True)
class StateBlocks:
    """Why what making the state left allocated on CUDA is not what the state's tensors hold.

    `delta` is what `memory_allocated` rose by in the first step, and the blocks of state that was
    there before it (Adagrad's). Of the tensors' bytes, `on_host` never reach the device; `rounding`
    is what the blocks of the others are larger than their tensors. What is then left, `other`, is
    no state: workspaces, and what the step has freed.
    """

    tensors: Count
    on_host: Count
    rounding: int
    delta: int

    @property
    def allocated(self) -> int:
        """Bytes of the blocks that hold the state."""
        return self.tensors - self.on_host + self.rounding

    @property
    def other(self) -> int:
        """Bytes of the delta that are no block of the state; negative where the step has freed more
        than it left.
        """
        return self.delta - self.allocated


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """A GPU at one moment, as its management library tells it; None is what it does not tell.

    `slowed_by` says in words what holds its clock down. `process_bytes` is what the driver counts
    for this process, CUDA's context too.
    """

    clock_mhz: Count | None
    memory_clock_mhz: Count | None
    temperature_celsius: int | None
    slowed_by: tuple[str, ...]
    other_processes: Count | None
    process_bytes: Count | None


@dataclass(frozen=True, kw_only=True)
class StepOperation:
    """What one kind of operation took in a single `step`, by torch.profiler: calls, and seconds of
    the device or, on the CPU, its own.

    `bytes` is what its calls read and write if each tensor moves once, counted as for an estimate;
    None where that cannot be told.
    """

    name: str
    calls: Count
    seconds: Seconds
    bytes: Count | None


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What only a real run can tell, found in iterations that are not timed.

    `samples` are the sequences or images of one iteration, `tokens` the tokens that it reads, None
    for other models. `memory` has, by phase and counter, exact bytes: on CUDA the allocator's
    "allocated", "reserved", "requested" and "active", on the CPU "tensors" (living tensors, and
    what kernels take for themselves) and "resident" (the process). `tensors_at_peak` splits the
    highest "tensors". `gpu` was read while the timed iterations ran. `warnings` say what has
    spoiled the times, and what could not be watched.
    """

    samples: Count | None = None
    tokens: Count | None = None
    memory: Mapping[str, Mapping[str, Level]] = field(default_factory=dict)
    tensors_at_peak: Mapping[str, Count] = field(default_factory=dict)
    state_blocks: StateBlocks | None = None
    gpu: tuple[GpuReading, ...] = ()
    operations: tuple[StepOperation, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The mean loss on text that is never trained on, after so many micro-batches; None where it
    was not finite.
    """

    micro_batches: Count
    loss: Loss | None


@dataclass(frozen=True, kw_only=True)
class Course:
    """How training on text went under an accumulation.

    `draws` has the micro-batches of each optimizer step, in order, `ended` the number, from 1, of
    the micro-batch that each step followed; records of before have none. `losses` has the loss of
    every micro-batch, None where it was not finite. `added_bytes` is the most that the tensors of
    the accumulation's own have held between micro-batches, `dropped` the micro-batches that were
    lost for not being finite.
    """

    draws: tuple[Count, ...]
    ended: tuple[Count, ...] = ()
    losses: tuple[Loss | None, ...]
    held_out: tuple[HeldOut, ...]
    added_bytes: Count
    dropped: Count

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together, which a report would divide by or look up."""
        if not self.losses or not self.held_out:
            raise ValueError("losses and held_out have one number or more, got none")
        if self.ended and len(self.ended) != len(self.draws):
            raise ValueError(
                f"ended has a number for each of {len(self.draws)} draws, got {len(self.ended)}"
            )


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was found: origin, outcome, bytes, seconds and the environment they were found in.

    `model_family` is what a curve over model sizes may join ("gpt2"), None for a model that stands
    alone. `times` and `warmup` hold raw samples in seconds by phase ("forward", "backward", "step";
    "iteration" is the whole of one). When `origin` is "estimated", the step was timed on
    `measured_share` of the parameters and its samples divided by that share. `estimate` is there
    where the scenario names a GPU to simulate, and is an estimate whatever the origin. `watched` is
    what real iterations showed beside their times, `course` is there where the scenario asks to
    accumulate: its `times` are then by micro-batch, "draw" those of decisions not to step.
    `deciding_options` names the options that decide the bytes of the optimizer's state, each with
    its usual value; None in older records and for optimizers outside the catalogue. `error` is one
    line when `outcome` is not "ok"; `log` is the file, below the run's folder, with all that
    the scenario's process has printed. `warnings` are lines on counts that could not be known, as
    where a simulated step depends on values. `lost` names what belongs to this record and is not
    kept, with the reason, as a timeline that did not fit on the disk.
    """

    scenario: Scenario
    origin: Origin
    outcome: Outcome = "ok"
    model_family: Name | None = None
    parameter_count: Count | None = None
    memory: Memory | None = None
    times: Mapping[str, tuple[Seconds, ...]] | None = None
    warmup: Mapping[str, tuple[Seconds, ...]] | None = None
    measured_share: Annotated[float, Between(LEAST_SHARE, 1.0)] | None = None
    estimate: StepEstimate | None = None
    watched: Watched | None = None
    course: Course | None = None
    deciding_options: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    error: str | None = None
    log: str | None = None
    environment: Mapping[str, Any]

    @property
    def is_of_own_loop(self) -> bool:
        """Return whether somebody's own training loop was watched, which asks for no steps and no
        seed.
        """
        return self.origin == "measured" and self.environment.get("seed", 0) is None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready data, `schema` first."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps({"schema": SCHEMA, **vars(self)}, allow_nan=False, default=_fields)

    def to_line(self) -> bytes:
        """The record as a line of a run's file; ValueError, in one line, for one that could not be
        read again.
        """
        try:
            schema.read(Record, self)
        except ValueError as error:
            raise ValueError(
                f"a record of {schema.shown(self.scenario.optimizer)} cannot be kept: {error}"
            ) from error
        line = self.to_json().encode() + b"\n"
        if len(line) > schema.MOST_LINE_BYTES:
            raise ValueError(
                f"a record has at most {schema.MOST_LINE_BYTES} bytes, got {len(line)}"
            )
        return line

    @classmethod
    def from_dict(cls, data: Any) -> "Record":
        """The record that `to_dict` wrote; ValueError names what does not fit the schema."""
        if not isinstance(data, dict):
            raise ValueError(f"a record is a JSON object, got {type(data).__name__}")
        schema.require_version(data.get("schema"), SCHEMA, "schema")
        try:
            return schema.read(cls, data)
        except ValueError as error:
            raise ValueError(f"not a record: {error}") from error


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a part of a record, for JSON; `asdict` would copy every sample before."""
    if is_dataclass(value):
        return vars(value)
    raise TypeError(f"a record holds plain data, got {type(value).__name__}")
