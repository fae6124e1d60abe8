"""A stream of alloc and free events as data: what a program allocates, phase by phase."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .requests import Request
from .sources import Source

Phase = Literal["build", "forward", "backward", "clip", "step", "zero_grad"]
Category = Literal[
    "parameter",
    "buffer",
    "gradient",
    "optimizer_state",
    "activation",
    "temporary",
    "workspace",
    "input",
    "gathered",
    "communication",
]


class Collective(NamedTuple):
    """A call by which `ranks` ranks exchange data together, such as "all_gather".

    `nbytes` is the size of the whole tensor that is gathered, reduced or sent.
    """

    operation: str
    ranks: int
    nbytes: int


@dataclass(frozen=True)
class Segment:
    """The events of one phase, in order: n >= 0 allocates number n, ~n frees it.

    `collectives` has the exchanges between ranks in the phase.
    """

    phase: Phase
    events: list[int] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)


@dataclass(frozen=True)
class Allocations:
    """Allocations by number: requested bytes, category, and the code that requested them.

    `requests` holds those that kernels make for themselves, whose bytes depend on the GPU; `nbytes`
    has their bytes on the usual one. `classes` has the class of each module by its path. `streams`
    has the CUDA stream of those that are not on the default one, 0.
    """

    nbytes: list[int] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    requests: dict[int, Request] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)
    streams: dict[int, int] = field(default_factory=dict)

    def __add__(self, other: "Allocations") -> "Allocations":
        first = len(self.nbytes)
        requests = self.requests | {
            first + number: request for number, request in other.requests.items()
        }
        streams = self.streams | {
            first + number: stream for number, stream in other.streams.items()
        }
        return Allocations(
            self.nbytes + other.nbytes,
            self.categories + other.categories,
            self.sources + other.sources,
            requests,
            {**self.classes, **other.classes},
            streams,
        )
