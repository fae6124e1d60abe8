"""Watch a user's training loop inside a `with` block, and make a record of each optimizer.

Hooks around the steps measure them. Memory is watched by phase until each optimizer has taken two
steps, its warm-up, and as a whole after that. Nothing waits for the device before the end. A
failure of the watcher is noted in the record and never ends the training.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from ..machine.environment import environment
from ..records.outcome import one_line, outcome_of
from ..records.record import Level, Memory, Ranks, Record, StateBlocks, Watched
from ..training.optimizer import deciding_options
from ..training.state import bytes_by_dtype, state_bytes
from .clock import clock_for
from .cuda_memory import AllocatorWatch, state_blocks
from .harness import WATCHED
from .live_model import model_config
from .live_optimizer import hooked_optimizer, stepped_parameters
from .live_steps import BETWEEN, STEP, LiveSteps
from .live_subject import Model, Subject, subjects_of
from .phases import PhaseWatch, merged
from .ranks import rank_bytes
from .resident import resident_watch

LATER, OTHER_STEPS = "later_steps", "other_steps"


class Watch:
    """A context manager around a training loop; at its end `records` has one for each optimizer.

    `model` is the trained module, a name for it, or a list with one for each optimizer. A record
    counts the parameters of its module; if there is only a name, or if optimizers share the module,
    it counts those that the optimizer steps. `batch_size` and `sequence_length` go into the
    records. `keep` is called with each record.

    On CUDA the peaks are the allocator's. The watch resets them, for other code too except for
    other watches. On the CPU they are those of the process's resident set.

    An exception inside ends the watch, becomes the outcome of the records and reaches the caller.
    Raises ValueError for an object that is not an optimizer or a model, and for parameters on
    another device than the CPU or the current CUDA device.
    """

    records: tuple[Record, ...]

    def __init__(
        self,
        optimizer: Optimizer,
        *others: Optimizer,
        model: Model | Sequence[Model] = None,
        batch_size: int | None = None,
        sequence_length: int | None = None,
        keep: Callable[[Record], None] | None = None,
    ) -> None:
        self._keep, self._is_used = keep, False
        self._subjects = subjects_of([optimizer, *others], model, batch_size, sequence_length)
        device = self._subjects[0].scenario.device
        on_cuda = AllocatorWatch() if device == "cuda" else None
        self._memory: PhaseWatch = on_cuda or resident_watch()
        self._phase, self._is_later = ExitStack(), False
        self._steps = [
            LiveSteps(
                hooked_optimizer(subject.optimizer),
                parameters=subject.parameters,
                clock=clock_for(device),
                border=subject.border,
                enter=partial(self._enter, place),
                allocated=on_cuda and on_cuda.allocated,
            )
            for place, subject in enumerate(self._subjects)
        ]
        self._are_fresh = [subject.has_no_state() for subject in self._subjects]

    def __enter__(self) -> "Watch":
        if self._is_used:
            raise ValueError("a watch is for one `with` block; make a new one")
        self._is_used = True
        for place, (subject, steps) in enumerate(zip(self._subjects, self._steps, strict=True)):
            with subject.border.within("watch the steps"):
                if place == 0:
                    self._enter(place, BETWEEN)
                steps.begin()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        # Closing a generator that trains is a normal end of the loop.
        error = None if isinstance(error, GeneratorExit) else error
        for steps in self._steps:
            steps.end()
        with self._subjects[0].border.within("watch the memory of each phase"):
            self._phase.close()
        self.records = tuple(self._record(place, error) for place in range(len(self._subjects)))
        for record in self.records if self._keep is not None else ():
            self._pass_on(record)

    def _pass_on(self, record: Record) -> None:
        assert self._keep is not None
        try:
            self._keep(record)
        except Exception as error:
            # The loop has succeeded, and the code after it may save the model.
            warnings.warn(
                f"the record of {record.scenario.optimizer} was not kept: {one_line(error)}",
                stacklevel=5,
            )

    def _enter(self, place: int, phase: str) -> None:
        """Begin a phase of the loop; the steps of each optimizer are one phase."""
        if self._is_later:
            return
        if phase == BETWEEN and all(steps.taken >= WATCHED for steps in self._steps):
            phase, self._is_later = LATER, True
        self._phase.close()
        self._phase.enter_context(self._memory.phase(f"{STEP} {place}" if phase == STEP else phase))

    def _levels(self, place: int) -> dict[str, dict[str, Level]]:
        """Return the loop's levels for one optimizer's record: its steps, and those of others."""
        by_phase: dict[str, dict[str, Level]] = {}
        for phase, levels in self._memory.levels().items():
            name, _, stepped = phase.partition(" ")
            name = OTHER_STEPS if stepped and int(stepped) != place else name
            by_phase[name] = merged(by_phase.get(name, {}), levels)
        return by_phase

    def _record(self, place: int, error: BaseException | None) -> Record:
        subject, steps, levels = self._subjects[place], self._steps[place], self._levels(place)
        border, config, seconds, blocks = subject.border, {}, {}, None
        scenario = subject.scenario
        with border.within("read the model"):
            stepped = stepped_parameters(subject.optimizer)
            config = model_config(subject.model, subject.parameters(), stepped) | self._around(
                place
            )
            scenario = replace(scenario, config=config)
        with border.within("read the times"):
            seconds = steps.seconds()
        if error is None and steps.left_allocated is not None:
            with border.within("find the blocks of the state"):
                blocks = state_blocks(subject.optimizer, steps.left_allocated, subject.tensors)
        memory = None
        with border.within("count the bytes of parameters and state"):
            memory = _memory(subject, steps, levels, blocks)
        failure = one_line(error) if error else _failure(subject, steps)
        return Record(
            scenario=(
                replace(scenario, implementation="compiled") if steps.is_compiled else scenario
            ),
            origin="measured",
            outcome=outcome_of(error) if error else "failed" if failure else "ok",
            error=failure,
            deciding_options=deciding_options(scenario.optimizer),
            parameter_count=config.get("parameters"),
            memory=memory,
            times={
                phase: tuple(samples[WATCHED:])
                for phase, samples in seconds.items()
                if samples[WATCHED:]
            }
            or None,
            warmup={
                phase: tuple(samples[:WATCHED]) for phase, samples in seconds.items() if samples
            }
            or None,
            watched=Watched(
                memory=levels,
                state_blocks=blocks if self._are_fresh[place] else None,
                warnings=border.notes(),
            ),
            ranks=(
                Ranks(each=(rank_bytes(config["rank"], memory),))
                if memory is not None and "rank" in config
                else None
            ),
            environment=environment(seed=None),
        )

    def _around(self, place: int) -> dict[str, Any]:
        """Return the loop's other optimizers, and this one's place if another one is equal."""
        others = [subject for number, subject in enumerate(self._subjects) if number != place]
        is_alike = any(subject.scenario == self._subjects[place].scenario for subject in others)
        counts = sorted(Counter(subject.fingerprint for subject in others).items())
        neighbours = (
            {"beside": [name if count == 1 else f"{count} of {name}" for name, count in counts]}
            if others
            else {}
        )
        return neighbours | ({"place": place + 1} if is_alike else {})


def _failure(subject: Subject, steps: LiveSteps) -> str | None:
    """Return why a loop without an exception is not a measurement; note what spoils one."""
    name = type(subject.optimizer).__name__
    if steps.is_hidden:
        subject.border.note(
            "steps in a CUDA graph or in one graph of torch.compile run no hooks: neither these"
            " steps nor their gradients are counted"
        )
    elif not steps.taken:
        return (
            f"{name}.step never ran in this block: a GradScaler may have skipped it, or the loop"
            " calls another method"
        )
    elif steps.gradients == 0:
        subject.border.note(f"no parameter had a gradient when {name} stepped")
    with subject.border.within("compare the parameters with the model's"):
        if foreign := _foreign(subject):
            subject.border.note(
                f"{foreign} of the parameters that {name} steps are not the model's: they count as"
                " its state"
            )
    return None


def _foreign(subject: Subject) -> int:
    """Return the number of parameters that the optimizer steps and its model does not have.

    They are copies, or parameters that the model has replaced since.
    """
    if not isinstance(subject.model, torch.nn.Module):
        return 0
    own = set(subject.model.parameters())
    return sum(parameter not in own for parameter in stepped_parameters(subject.optimizer))


def _memory(
    subject: Subject,
    steps: LiveSteps,
    levels: Mapping[str, Mapping[str, Level]],
    blocks: StateBlocks | None,
) -> Memory | None:
    """Return the bytes in use now; None if the gradients could not be counted."""
    if steps.gradients is None:
        return None
    peaks = {
        phase: counters["allocated"].peak
        for phase, counters in levels.items()
        if "allocated" in counters
    }
    return state_bytes(subject.optimizer, subject.tensors).memory(
        bytes_by_dtype(subject.parameters()),
        steps.gradients,
        allocated=None if blocks is None else blocks.allocated,
        peak_by_phase=peaks,
        peak_reserved=max(
            (counters["reserved"].peak for counters in levels.values() if "reserved" in counters),
            default=None,
        ),
    )
