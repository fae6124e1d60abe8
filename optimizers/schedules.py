"""Learning-rate schedules that the authors of SM3 advise, for torch's LambdaLR.

    scheduler = LambdaLR(optimizer, WarmUpAndDecay(warm_up_steps=1_000, total_steps=50_000))

Early gradients are large, and SM3's accumulators never forget them, so the rate grows
quadratically. Its fall to 0 over the last tenth of training has the effect of averaging the
parameters. In between the rate is constant. These are objects and not lambdas so that a scheduler
can be pickled and has their fields in its state_dict.
"""

from dataclasses import dataclass


@dataclass(kw_only=True)
class QuadraticWarmUp:
    """min(1, (step / warm_up_steps)^2), always 1 if warm_up_steps is 0."""

    warm_up_steps: int

    def __post_init__(self) -> None:
        if self.warm_up_steps < 0:
            raise ValueError(f"warm_up_steps must be >= 0, got {self.warm_up_steps}")

    def __call__(self, step: int) -> float:
        """Return the learning rate's factor at a step, counted from 0."""
        return 1.0 if step >= self.warm_up_steps else (step / self.warm_up_steps) ** 2


@dataclass(kw_only=True)
class FinalDecay:
    """min(1, (total_steps - step) / (fraction total_steps)), and 0 from total_steps on."""

    total_steps: int
    fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be >= 1, got {self.total_steps}")
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")

    def __call__(self, step: int) -> float:
        """Return the learning rate's factor at a step, counted from 0."""
        return min(1.0, max(0.0, (self.total_steps - step) / (self.fraction * self.total_steps)))


@dataclass(kw_only=True)
class WarmUpAndDecay:
    """The smaller of QuadraticWarmUp and FinalDecay."""

    warm_up_steps: int
    total_steps: int
    fraction: float = 0.1

    def __post_init__(self) -> None:
        QuadraticWarmUp(warm_up_steps=self.warm_up_steps)
        FinalDecay(total_steps=self.total_steps, fraction=self.fraction)
        if self.warm_up_steps >= self.total_steps:
            raise ValueError(
                f"warm_up_steps must be < total_steps, got {self.warm_up_steps} and"
                f" {self.total_steps}"
            )

    def __call__(self, step: int) -> float:
        """Return the learning rate's factor at a step, counted from 0."""
        warm_up = QuadraticWarmUp(warm_up_steps=self.warm_up_steps)
        decay = FinalDecay(total_steps=self.total_steps, fraction=self.fraction)
        return min(warm_up(step), decay(step))
