"""The device that a campaign runs on: CUDA, or what a rehearsal puts in its place."""

from collections.abc import Callable

from optprof.scenarios import Scenario


class Place:
    """`device` is where tensors are made; `prepare` is called with each scenario before it runs."""

    def __init__(self) -> None:
        self.device = "cuda"
        self.prepare: Callable[[Scenario], Scenario] = lambda scenario: scenario


PLACE = Place()
