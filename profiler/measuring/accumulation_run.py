"""A training run on text, in which an accumulation decides after each micro-batch whether to step.

The seed draws each micro-batch's text, so runs of one seed read the same. The last tenth of the
text is held out. Its loss is computed about twenty times, between micro-batches and outside their
times. Nothing is repeated, so the first tenth of the run is the warm-up.
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
from ..records.record import Course, HeldOut, Record, Watched
from ..training.accumulating import target_schedule
from ..training.optimizer import deciding_options, set_training
from ..training.state import bytes_by_dtype, state_bytes
from .clock import clock_for
from .disturbances import disturbances
from .trainer import Trainer

READINGS = 20
WARM_UP_SHARE = 10
# Tokens of held-out text in one forward pass, if a micro-batch has fewer.
AT_ONCE = 1024


def measure_accumulation_run(scenario: Scenario) -> Record:
    """Train on `scenario.steps` micro-batches of text and time each one's phases.

    The phase "draw" is a decision not to step, "step" a decision to step and the step. A loss that
    is not finite, or too large for a record, is None. Raises ValueError for a model that does not
    read text of this length.
    """
    keep_freed_memory()
    clock = clock_for(scenario.device)
    run = Trainer(scenario, clock.phase)
    accumulation = run.accumulation
    assert accumulation is not None
    reader, scheduler = _Reader(scenario, run), _scheduler(scenario, accumulation)
    warmup: defaultdict[str, list[float]] = defaultdict(list)
    times: defaultdict[str, list[float]] = defaultdict(list)
    draws, ended, losses, added = [], [], [], 0
    held_out = [HeldOut(micro_batches=0, loss=reader.held_out_loss())]
    with disturbances(scenario.device) as machine:
        for number in range(1, scenario.steps + 1):
            stepped = run.draw(reader.draw())
            share = number * READINGS // scenario.steps
            is_reading = share > (number - 1) * READINGS // scenario.steps
            if is_reading:
                machine.look()
            for phase, seconds in clock.collect().items():
                samples = warmup if number <= max(1, scenario.steps // WARM_UP_SHARE) else times
                samples["draw" if phase == "step" and not stepped else phase].append(seconds)
            losses.append(_recordable(run.loss))
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
        deciding_options=deciding_options(scenario.optimizer),
        model_family=models.family_name(scenario.model, scenario.config),
        parameter_count=sum(p.numel() for p in run.parameters),
        # The state of the wrapped optimizer; `added_bytes` counts a pending sum.
        memory=state_bytes(accumulation.optimizer, run.tensors).memory(
            bytes_by_dtype(run.parameters), run.gradients
        ),
        times={phase: tuple(samples) for phase, samples in times.items()},
        warmup={phase: tuple(samples) for phase, samples in warmup.items()},
        watched=Watched(
            samples=run.samples, tokens=run.tokens, gpu=machine.gpu, warnings=machine.warnings()
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
    """Text in micro-batches, and the loss on the held-out text."""

    def __init__(self, scenario: Scenario, run: Trainer) -> None:
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
        """Return the tokens of one micro-batch, (batch, length)."""
        return self._windows[
            torch.randint(len(self._windows), (self._batch_size,), generator=self._generator)
        ]

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """Return the mean loss over the held-out text, without dropout."""
        model = self._run.model.eval()
        set_training(self._run.optimizer, False)
        parts = self._held_out.to(self._run.parameters[0].device).split(
            max(self._batch_size, AT_ONCE // self._held_out.shape[1])
        )
        total = sum(float(model(input_ids=part, labels=part).loss) * len(part) for part in parts)
        model.train()
        set_training(self._run.optimizer, True)
        return _recordable(total / len(self._held_out))


def _scheduler(scenario: Scenario, accumulation: Accumulation) -> LambdaLR | None:
    """Return a scheduler of the target; None if the target is constant."""
    schedule = target_schedule(scenario)
    return LambdaLR(accumulation.target, schedule) if schedule else None


def _added_bytes(run: Trainer, accumulation: Accumulation) -> int:
    """Return the bytes that the accumulation keeps in addition to the wrapped optimizer's state."""
    return (
        state_bytes(accumulation, run.tensors).total
        - state_bytes(accumulation.optimizer, run.tensors).total
    )


def _recordable(loss: float) -> float | None:
    return loss if abs(loss) <= MOST_LOSS else None
