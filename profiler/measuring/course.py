"""A course: real training on text, micro-batch by micro-batch, in which an accumulation decides
when to step.

Every micro-batch is other text, drawn by the seed: courses of one seed read the same. The last
tenth of the text is held out, and its loss taken some twenty times, between micro-batches and
outside their times. Nothing is run twice, so the times of the first tenth of the course are its
warm-up.
"""

from collections import defaultdict

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from optprof.optimizers.accumulation import Accumulation
from optprof.scenarios import Scenario, models, texts
from optprof.scenarios.schema import MOST_LOSS

from ..machine.environment import environment
from ..machine.malloc import keep_freed_memory
from ..records.record import Course, GpuReading, HeldOut, Memory, Record, Watched
from ..training.accumulating import target_schedule
from ..training.optimizer import set_training
from ..training.state import bytes_by_dtype, state_bytes, storage_bytes
from .contention import Contention
from .nvml import reading_gpu
from .nvml import warnings as gpu_warnings
from .timing import clock_for
from .training_run import TrainingRun

READINGS = 20
WARM_UP_SHARE = 10
# Tokens of held-out text that the model reads at once, where a micro-batch is smaller.
AT_ONCE = 1024


def measure_course(scenario: Scenario) -> Record:
    """`scenario.steps` micro-batches of text, each timed in its phases: "draw" is a decision not to
    step, "step" one to step and the step.

    A loss that is not finite, or so in a sum, is None. Raises ValueError for a model that does not
    read text of this length.
    """
    keep_freed_memory()
    clock = clock_for(scenario.device)
    run = TrainingRun(scenario, clock.phase)
    accumulation = run.accumulation
    assert accumulation is not None
    reader, scheduler = _Reader(scenario, run), _scheduler(scenario, accumulation)
    warmup: defaultdict[str, list[float]] = defaultdict(list)
    times: defaultdict[str, list[float]] = defaultdict(list)
    draws, ended, losses, added = [], [], [], 0
    held_out = [HeldOut(micro_batches=0, loss=reader.held_out_loss())]
    watch = _Watch(scenario)
    for number in range(1, scenario.steps + 1):
        stepped = run.draw(reader.draw())
        is_reading = number * READINGS // scenario.steps > (number - 1) * READINGS // scenario.steps
        if is_reading:
            # While the device is at work on what was launched.
            watch.look()
        for phase, seconds in clock.collect().items():
            kept = warmup if number <= max(1, scenario.steps // WARM_UP_SHARE) else times
            kept["draw" if phase == "step" and not stepped else phase].append(seconds)
        losses.append(_finite(run.loss))
        if stepped:
            draws.append(accumulation.last_num_draws or 0)
            ended.append(number)
        added = max(added, _added_bytes(run, accumulation))
        if scheduler is not None:
            scheduler.step()
        if is_reading:
            held_out.append(HeldOut(micro_batches=number, loss=reader.held_out_loss()))
    return Record(
        scenario=scenario,
        origin="measured",
        model_family=models.family_name(scenario.model, scenario.config),
        parameter_count=sum(p.numel() for p in run.parameters),
        memory=_memory(run, accumulation),
        times={phase: tuple(samples) for phase, samples in times.items()},
        warmup={phase: tuple(samples) for phase, samples in warmup.items()},
        watched=Watched(
            samples=run.samples, tokens=run.tokens, gpu=watch.gpu, warnings=watch.warnings()
        ),
        course=Course(
            draws=tuple(draws),
            ended=tuple(ended),
            losses=tuple(losses),
            held_out=tuple(held_out),
            added_bytes=added,
            dropped=accumulation.num_dropped,
        ),
        environment=environment(scenario.seed),
    )


class _Reader:
    """Text in micro-batches, and the loss on what is held out."""

    def __init__(self, scenario: Scenario, run: TrainingRun) -> None:
        shape = getattr(run.batch.get("input_ids"), "shape", None)
        train, held_out = (torch.tensor(list(part)) for part in texts.split())
        if shape is None or shape[1] > len(held_out):
            raise ValueError(
                f"accumulate trains on text in sequences of at most {len(held_out)} tokens;"
                f" {scenario.model} reads other batches"
            )
        self._run, self._batch_size = run, shape[0]
        self._windows = train.unfold(0, shape[1], 1)
        self._held_out = held_out.unfold(0, shape[1], shape[1])
        self._generator = torch.Generator().manual_seed(scenario.seed)

    def draw(self) -> Tensor:
        """Tokens of one micro-batch, (batch, length)."""
        return self._windows[
            torch.randint(len(self._windows), (self._batch_size,), generator=self._generator)
        ]

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """The mean loss over all of the held-out text, without dropout; None where it is not
        finite.
        """
        model = self._run.model.eval()
        set_training(self._run.optimizer, False)
        parts = self._held_out.to(self._run.parameters[0].device).split(
            max(self._batch_size, AT_ONCE // self._held_out.shape[1])
        )
        total = sum(float(model(input_ids=part, labels=part).loss) * len(part) for part in parts)
        model.train()
        set_training(self._run.optimizer, True)
        return _finite(total / len(self._held_out))


class _Watch:
    """What disturbs a course: other processes, from its making on, and on CUDA what the GPU tells
    at each look.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.gpu: tuple[GpuReading, ...] = ()
        self._on_cuda, self._contention = scenario.device == "cuda", Contention()

    def look(self) -> None:
        """Read the GPU, where there is one that tells."""
        if not self._on_cuda:
            return
        with reading_gpu() as read:
            reading = read()
        self.gpu += (reading,) if reading else ()

    def warnings(self) -> tuple[str, ...]:
        """What has spoiled the times."""
        return tuple(
            warning for warning in (self._contention.warning(), *gpu_warnings(self.gpu)) if warning
        )


def _scheduler(scenario: Scenario, accumulation: Accumulation) -> LambdaLR | None:
    """What drives the target from micro-batch to micro-batch; None where it stays."""
    schedule = target_schedule(scenario)
    return LambdaLR(accumulation.target, schedule) if schedule else None


def _added_bytes(run: TrainingRun, accumulation: Accumulation) -> int:
    """Bytes that the accumulation keeps beside the optimizer inside."""
    return (
        state_bytes(accumulation, run.tensors).total
        - state_bytes(accumulation.optimizer, run.tensors).total
    )


def _finite(loss: float) -> float | None:
    return loss if abs(loss) <= MOST_LOSS else None


def _memory(run: TrainingRun, accumulation: Accumulation) -> Memory:
    # A pending sum is counted in `added_bytes`.
    state = state_bytes(accumulation.optimizer, run.tensors)
    return Memory(
        parameters=storage_bytes(run.parameters),
        parameters_by_dtype=bytes_by_dtype(run.parameters),
        gradients=run.gradients,
        optimizer_state=state.total,
        state_by_key=state.by_key,
        state_by_key_dtype=state.by_key_dtype,
        peak_by_category={},
        peak_by_phase={},
    )
