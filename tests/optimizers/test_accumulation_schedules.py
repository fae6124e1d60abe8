"""Schedules of an accumulation's target, worked out by hand, and as torch's schedulers run them.

G3 is a defect of torch-gqc 0.7 and 0.10: its warm-up changed the scheduler beneath.
"""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau

from optprof.optimizers.accumulation import CosineTarget, GradientNormThreshold, NormWarmupScheduler


def descent() -> SGD:
    return SGD([Parameter(torch.zeros(2))], lr=1.0)


def threshold(target: float = 1.0) -> GradientNormThreshold:
    return GradientNormThreshold(descent(), threshold=target)


def test_g3_the_warm_up_does_not_change_the_wrapped_scheduler() -> None:
    wrapper, alone = threshold(), descent()
    beneath = CosineAnnealingLR(alone, T_max=20)
    scheduler = NormWarmupScheduler(CosineAnnealingLR(wrapper.target, T_max=20), warmup_steps=5)
    alone._opt_called = True  # pyright: ignore[reportAttributeAccessIssue]
    for step in range(21):
        factor = 10 - 9 * step / 5 if step < 5 else 1
        assert wrapper.target.value == pytest.approx(alone.param_groups[0]["lr"] * factor)
        scheduler.step()
        beneath.step()
    assert wrapper.target.value == pytest.approx(alone.param_groups[0]["lr"])


def test_g3_the_trace_over_a_constant_is_the_original_s() -> None:
    wrapper = threshold(2.0)
    scheduler = NormWarmupScheduler(LambdaLR(wrapper.target, lambda _: 1.0), warmup_steps=5)
    targets = []
    for _ in range(7):
        targets.append(wrapper.target.value)
        scheduler.step()
    assert targets == pytest.approx([20, 16.4, 12.8, 9.2, 5.6, 2, 2])


def test_the_warm_up_passes_a_metric_on_and_goes_on_from_its_state() -> None:
    made = []
    for _ in range(2):
        wrapper = threshold()
        made.append(
            (
                wrapper,
                NormWarmupScheduler(ReduceLROnPlateau(wrapper.target, factor=0.5, patience=0), 4),
            )
        )
    (wrapper, scheduler), (other, twin) = made
    scheduler.step(1.0)
    scheduler.step(2.0)
    assert scheduler.get_last_lr() == [wrapper.target.value] == [pytest.approx(0.5 * 5.5)]
    file = io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    twin.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    for each in (scheduler, twin):
        each.step(0.5)
    assert other.target.value == wrapper.target.value == pytest.approx(0.5 * 3.25)


def test_the_cosine_goes_from_high_over_one_to_its_end() -> None:
    schedule = CosineTarget(total_steps=14, warmup_steps=4, warmup_start=5.0, final=0.2)
    assert [schedule(step) for step in (0, 1, 2, 3, 4)] == pytest.approx([5, 4, 3, 2, 1])
    assert [schedule(step) for step in (9, 14, 100)] == pytest.approx([0.6, 0.2, 0.2])
    wrapper = threshold(3.0)
    scheduler = pickle.loads(pickle.dumps(LambdaLR(wrapper.target, schedule)))
    assert wrapper.target.value == scheduler.optimizer.value == 15.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 4, "warmup_steps": 4}, "total_steps must be > warmup_steps, got 4 and 4"),
        ({"total_steps": 4, "final": 0.0}, "final must be > 0, got 0.0"),
        ({"total_steps": 4, "warmup_steps": -1}, "warmup_steps must be >= 0, got -1"),
        ({"total_steps": 4, "warmup_start": 0.0}, "warmup_start must be > 0, got 0.0"),
    ],
)
def test_an_impossible_schedule_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CosineTarget(**options)
