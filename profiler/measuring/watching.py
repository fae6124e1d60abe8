"""Watching anybody's own training: hooks around an optimizer's step, for as long as a `with` block lasts, and a record of what they saw.

The first two iterations are watched for memory, phase by phase, and their times are the warm-up; of all that follow the steps and the
iterations are timed, and memory is watched as a whole. Nothing waits for the device before the end.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import pairwise
from types import TracebackType
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle

import optimizers
from scenarios import Scenario
from scenarios.spec import Device, DType, Implementation

from ..environment import environment
from ..outcome import one_line, outcome_of
from ..plan import is_plain
from ..record import Level, Memory, Record, StateBlocks, Watched
from ..state import state_bytes, state_tensors, storage_bytes
from .cuda_memory import AllocatorWatch, state_blocks
from .harness import WATCHED
from .moments import moments_for
from .resident_watch import ResidentWatch

# Steps whose times are kept; those of a long training are more than a median needs.
MOST_SAMPLES = 10_000
BETWEEN, STEP, LATER = "between_steps", "step", "later_steps"
_DTYPES: dict[torch.dtype, DType] = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class _MemoryWatch(Protocol):
    def phase(self, name: str) -> AbstractContextManager[None]: ...

    def levels(self) -> dict[str, dict[str, Level]]: ...


class Watch:
    """A context manager around a training loop that calls `optimizer.step()`; `record` is there when the block has ended.

    `model` is the module that is trained or a name for it; without it, only the optimizer's own parameters are counted. `batch_size` and
    `sequence_length` are what the record is to tell of the batch; `keep` is given the record. On CUDA the peaks are the allocator's, which
    are counted afresh from here on; on the CPU, where no allocator counts, they are the process's resident set.

    An exception inside ends the watching and makes a record of what it was; it goes on to the caller. ValueError, on entering, for
    parameters of another dtype than fp32 and bf16 or on another device than the CPU or the current CUDA device.
    """

    record: Record

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        model: torch.nn.Module | str | None = None,
        batch_size: int | None = None,
        sequence_length: int | None = None,
        keep: Callable[[Record], None] | None = None,
    ) -> None:
        self._optimizer, self._model, self._keep = optimizer, model, keep
        self._asked = _scenario(optimizer, model, batch_size, sequence_length)
        self._watch: _MemoryWatch = AllocatorWatch() if self._asked.device == "cuda" else ResidentWatch()
        self._moments = moments_for(self._asked.device)
        self._phase = ExitStack()
        self._hooks: list[RemovableHandle] = []
        # The moments at which a step began and ended; the first pair is that of entering.
        self._samples: list[tuple[Any, Any]] = []
        self._started: Any = None
        self._steps = self._gradients = 0
        self._is_fresh = not any(True for _ in state_tensors(optimizer))

    def __enter__(self) -> "Watch":
        self._hooks = [
            self._optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            self._optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]
        self._enter_phase(BETWEEN)
        entered = self._moments.now()
        self._samples.append((entered, entered))
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        try:
            self._phase.close()
            samples = self._seconds()
        except RuntimeError:
            # After some errors a device answers nothing more.
            if error is None:
                raise
            samples = {}
        self.record = self._find(samples, error)
        if self._keep is not None:
            self._keep(self.record)

    def _before_step(self) -> None:
        if self._steps < WATCHED:
            self._gradients = storage_bytes(parameter.grad for parameter in self._parameters())
            self._enter_phase(STEP)
        self._started = self._moments.now()

    def _after_step(self) -> None:
        if len(self._samples) <= MOST_SAMPLES:
            self._samples.append((self._started, self._moments.now()))
        self._steps += 1
        if self._steps <= WATCHED:
            self._enter_phase(BETWEEN if self._steps < WATCHED else LATER)

    def _enter_phase(self, name: str) -> None:
        self._phase.close()
        self._phase.enter_context(self._watch.phase(name))

    def _parameters(self) -> list[torch.nn.Parameter]:
        """Those of the model, or as many as the optimizer has."""
        return list(self._model.parameters()) if isinstance(self._model, torch.nn.Module) else _stepped(self._optimizer)

    def _find(self, samples: Mapping[str, Sequence[float]], error: BaseException | None) -> Record:
        blocks = state_blocks(self._optimizer, self._delta or 0) if error is None and self._asked.device == "cuda" else None
        # The size tells models of one class apart.
        count = sum(parameter.numel() for parameter in self._parameters())
        explained = blocks if self._is_fresh and self._delta is not None else None
        return Record(
            scenario=replace(self._asked, config={"parameters": count}),
            origin="measured",
            outcome=outcome_of(error) if error else "ok",
            error=one_line(error) if error else None,
            parameter_count=count,
            memory=self._memory(blocks),
            times={phase: tuple(seconds[WATCHED:]) for phase, seconds in samples.items() if seconds[WATCHED:]} or None,
            warmup={phase: tuple(seconds[:WATCHED]) for phase, seconds in samples.items() if seconds} or None,
            watched=Watched(memory=self._watch.levels(), state_blocks=explained),
            environment={**environment(seed=0), "seed": None},
        )

    @property
    def _delta(self) -> int | None:
        """What the first step left allocated on CUDA; None where there was none."""
        return self._watch.allocated_by_step if isinstance(self._watch, AllocatorWatch) else None

    def _seconds(self) -> dict[str, list[float]]:
        """Seconds of each step, and of each iteration: from the end of one step to that of the next, whatever the loop does between."""
        seconds = self._moments.seconds
        return {
            "step": [seconds(start, end) for start, end in self._samples[1:]],
            "iteration": [seconds(before, end) for (_, before), (_, end) in pairwise(self._samples)],
        }

    def _memory(self, blocks: StateBlocks | None) -> Memory:
        state = state_bytes(self._optimizer)
        levels = self._watch.levels()
        peaks = {phase: counters["allocated"].peak for phase, counters in levels.items() if "allocated" in counters}
        return Memory(
            parameters=storage_bytes(self._parameters()),
            gradients=self._gradients,
            optimizer_state=state.total,
            state_by_key=state.by_key,
            state_by_key_dtype=state.by_key_dtype,
            optimizer_state_allocated=None if blocks is None else blocks.allocated,
            peak_allocated=max(peaks.values(), default=None),
            peak_reserved=max((counters["reserved"].peak for counters in levels.values() if "reserved" in counters), default=None),
            peak_phase=max(peaks, key=lambda phase: peaks[phase], default=None),
            peak_by_category={},
            peak_by_phase=peaks,
        )


def _scenario(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module | str | None, batch_size: int | None, sequence_length: int | None
) -> Scenario:
    """The question that a training loop of one's own answers; ValueError for what cannot be watched."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"watch takes a torch.optim.Optimizer, got {type(optimizer).__name__}; give it the optimizer inside of that")
    device = _device(_stepped(optimizer))
    return Scenario(
        model=_model_name(model),
        optimizer=optimizers.name_of(optimizer),
        options={name: value for name, value in optimizers.options_of(optimizer).items() if is_plain(value)},
        implementation=_implementation(optimizer, device),
        dtype=_dtype(_stepped(optimizer)),
        batch_size=1 if batch_size is None else batch_size,
        sequence_length=sequence_length,
        device=device,
    )


def _model_name(model: torch.nn.Module | str | None) -> str:
    """A name with a colon, as all models have that are somebody's own."""
    if isinstance(model, torch.nn.Module):
        return f"{type(model).__module__}:{type(model).__qualname__}"
    return model if model and ":" in model else f"own:{model or 'model'}"


def _device(parameters: Sequence[torch.nn.Parameter]) -> Device:
    found = sorted({str(parameter.device) for parameter in parameters})
    if found == ["cpu"]:
        return "cpu"
    if torch.cuda.is_available() and found == [f"cuda:{torch.cuda.current_device()}"]:
        return "cuda"
    raise ValueError(f"watch reads the CPU or the current CUDA device, got parameters on {', '.join(found)}; set that device first")


def _dtype(parameters: Sequence[torch.nn.Parameter]) -> DType:
    """The dtype of most of the elements."""
    held: Counter[torch.dtype] = Counter()
    for parameter in parameters:
        held[parameter.dtype] += parameter.numel()
    ((dtype, _),) = held.most_common(1)
    if dtype not in _DTYPES:
        raise ValueError(f"watch takes parameters in {' or '.join(_DTYPES.values())}, got {str(dtype).removeprefix('torch.')}")
    return _DTYPES[dtype]


def _implementation(optimizer: torch.optim.Optimizer, device: Device) -> Implementation:
    """How the step is run: as the optimizer was told, else as torch chooses by itself."""
    told = optimizer.defaults
    if told.get("fused"):
        return "fused"
    chosen = "foreach" in told and told["foreach"] is None and device == "cuda"
    return "foreach" if told.get("foreach") or chosen else "loop"


def _stepped(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
