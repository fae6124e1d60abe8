"""The device of a campaign: CUDA, or the CPU in a rehearsal."""

from collections.abc import Callable

from optprof.scenarios import Scenario


class Place:
    """The device of tensors, and a function that prepares each scenario."""

    def __init__(self) -> None:
        self.device = "cuda"
        self.prepare: Callable[[Scenario], Scenario] = lambda scenario: scenario


PLACE = Place()
