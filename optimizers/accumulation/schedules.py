"""Schedules of the target that decides when to step: high at first, since early gradients are
large.

scheduler = LambdaLR(accumulation.target, CosineTarget(total_steps=10_000, warmup_steps=500,
final=0.2)) scheduler = NormWarmupScheduler(CosineAnnealingLR(accumulation.target, T_max=10_000),
warmup_steps=500)
"""

from dataclasses import dataclass
from math import cos, pi
from typing import Any


def inverse_warmup(step: int, warmup_steps: int, start: float) -> float:
    """The factor on the target at a step, counted from 0: a straight line from `start` down to 1 at
    `warmup_steps`, and 1 from there on.
    """
    return start + (1 - start) * step / warmup_steps if step < warmup_steps else 1.0


@dataclass(kw_only=True)
class CosineTarget:
    """The inverse warm-up, then half a cosine from 1 down to `final` at total_steps, and `final`
    from there on; for torch's LambdaLR.
    """

    total_steps: int
    warmup_steps: int = 0
    warmup_start: float = 10.0
    final: float = 0.2

    def __post_init__(self) -> None:
        _require_warmup(self.warmup_steps, self.warmup_start)
        if self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"total_steps must be > warmup_steps, got {self.total_steps} and"
                f" {self.warmup_steps}"
            )
        if not self.final > 0:
            raise ValueError(f"final must be > 0, got {self.final}")

    def __call__(self, step: int) -> float:
        """The factor on the target at a step, counted from 0."""
        if step < self.warmup_steps:
            return inverse_warmup(step, self.warmup_steps, self.warmup_start)
        share = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final + (1 - self.final) * (1 + cos(pi * share)) / 2


class NormWarmupScheduler:
    """An inverse warm-up on top of any scheduler: its value times `warmup_start` at first, falling
    to the value itself at `warmup_steps`.

    The scheduler beneath always finds the value that it left, so that one which computes each from
    the last goes on undisturbed. Torch's schedulers set a first value when they are made; so does
    this one.
    """

    def __init__(self, scheduler: Any, warmup_steps: int, warmup_start: float = 10.0) -> None:
        _require_warmup(warmup_steps, warmup_start)
        self.scheduler = scheduler
        self.optimizer = scheduler.optimizer
        self.warmup_steps, self.warmup_start = warmup_steps, warmup_start
        self.last_epoch = 0
        self._values: list[float] = []
        self._warm()

    def _warm(self) -> None:
        """Take the values that the scheduler beneath has set, and set them times the factor."""
        self._values = [group["lr"] for group in self.optimizer.param_groups]
        factor = inverse_warmup(self.last_epoch, self.warmup_steps, self.warmup_start)
        for group, value in zip(self.optimizer.param_groups, self._values, strict=True):
            group["lr"] = value * factor

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the scheduler beneath, with its arguments, and warm what it sets."""
        for group, value in zip(self.optimizer.param_groups, self._values, strict=True):
            group["lr"] = value
        self.scheduler.step(*args, **kwargs)
        self.last_epoch += 1
        self._warm()

    def get_last_lr(self) -> list[float]:
        """The values in force."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Where it is, and the state of the scheduler beneath."""
        return {
            "last_epoch": self.last_epoch,
            "values": list(self._values),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the values in force come with the optimizer's
        state.
        """
        self.last_epoch, self._values = state_dict["last_epoch"], list(state_dict["values"])
        self.scheduler.load_state_dict(state_dict["scheduler"])


def _require_warmup(warmup_steps: int, warmup_start: float) -> None:
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be >= 0, got {warmup_steps}")
    if not warmup_start > 0:
        raise ValueError(f"warmup_start must be > 0, got {warmup_start}")
