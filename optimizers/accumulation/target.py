"""The target, the number that decides when to step, and schedules that drive it.

    scheduler = LambdaLR(accumulation.target, CosineTarget(total_steps=10_000, warmup_steps=500))
    scheduler = NormWarmupScheduler(
        CosineAnnealingLR(accumulation.target, T_max=10_000), warmup_steps=500
    )

Schedules start high, because early gradients are large.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import Any

from torch.optim.optimizer import Optimizer


class Target(Optimizer):
    """One number as the learning rate of an optimizer without parameters, for torch's schedulers.

        CosineAnnealingLR(accumulation.target, T_max=1_000, eta_min=0.2)

    The learning rate of the model's parameters is another.
    """

    # A scheduler warns if it steps before its optimizer, whose step does nothing here.
    _opt_called = True

    def __init__(self, value: float) -> None:
        super().__init__([{"params": []}], {"lr": value})

    @property
    def value(self) -> float:
        """Return the number."""
        return float(self.param_groups[0]["lr"])

    @value.setter
    def value(self, value: float) -> None:
        self.param_groups[0]["lr"] = value

    def settings(self) -> dict[str, Any]:
        """Return the number and the entries of schedulers."""
        return {name: value for name, value in self.param_groups[0].items() if name != "params"}

    def step(self, closure: Any = None) -> Any:
        """Do nothing."""


def inverse_warmup(step: int, warmup_steps: int, start: float) -> float:
    """Return the target's factor: a line from `start` at step 0 to 1 at `warmup_steps`, then 1."""
    return start + (1 - start) * step / warmup_steps if step < warmup_steps else 1.0


@dataclass(kw_only=True)
class CosineTarget:
    """An inverse warm-up, half a cosine from 1 to `final` at total_steps, then `final`.

    The target's factor for torch's LambdaLR.
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
        """Return the target's factor at a step, counted from 0."""
        if step < self.warmup_steps:
            return inverse_warmup(step, self.warmup_steps, self.warmup_start)
        share = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.final + (1 - self.final) * (1 + cos(pi * share)) / 2


class NormWarmupScheduler:
    """An inverse warm-up of any scheduler's values: times `warmup_start` at first, falling to 1.

    The inner scheduler always sees its own last value, as one that computes each value from the
    last needs. Like torch's schedulers it sets a first value when it is made.
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
        """Multiply the values that the inner scheduler has set by the factor."""
        self._values = [group["lr"] for group in self.optimizer.param_groups]
        factor = inverse_warmup(self.last_epoch, self.warmup_steps, self.warmup_start)
        for group, value in zip(self.optimizer.param_groups, self._values, strict=True):
            group["lr"] = value * factor

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the inner scheduler with its arguments, and multiply its values by the factor."""
        for group, value in zip(self.optimizer.param_groups, self._values, strict=True):
            group["lr"] = value
        self.scheduler.step(*args, **kwargs)
        self.last_epoch += 1
        self._warm()

    def get_last_lr(self) -> list[float]:
        """Return the present values."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the inner scheduler's values and its state."""
        return {
            "last_epoch": self.last_epoch,
            "values": list(self._values),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the present values are part of the optimizer's state."""
        self.last_epoch, self._values = state_dict["last_epoch"], list(state_dict["values"])
        self.scheduler.load_state_dict(state_dict["scheduler"])


def _require_warmup(warmup_steps: int, warmup_start: float) -> None:
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be >= 0, got {warmup_steps}")
    if not warmup_start > 0:
        raise ValueError(f"warmup_start must be > 0, got {warmup_start}")
