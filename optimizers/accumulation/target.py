"""The number that decides when to step, in the shape that torch's schedulers can drive."""

from typing import Any

from torch.optim.optimizer import Optimizer


class Target(Optimizer):
    """One number as the learning rate of an optimizer without parameters, so that every scheduler
    of torch can set it.

        CosineAnnealingLR(accumulation.target, T_max=1_000, eta_min=0.2)

    The learning rate of what is trained stays what it is.
    """

    # A scheduler warns where it steps before the optimizer has; this one has nothing to do in a
    # step.
    _opt_called = True

    def __init__(self, value: float) -> None:
        super().__init__([{"params": []}], {"lr": value})

    @property
    def value(self) -> float:
        """The number."""
        return float(self.param_groups[0]["lr"])

    @value.setter
    def value(self, value: float) -> None:
        self.param_groups[0]["lr"] = value

    def settings(self) -> dict[str, Any]:
        """The number and what schedulers keep beside it."""
        return {name: value for name, value in self.param_groups[0].items() if name != "params"}

    def step(self, closure: Any = None) -> Any:
        """Do nothing."""
