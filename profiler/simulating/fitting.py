"""The search for what fits: every answer is a simulated training step on the GPU's own memory.

A step fits if it has memory for the largest workspaces that cuDNN may take. Requested bytes, which
need no allocator, bound the largest batch; below the bound it is bisected. If a step does not fit,
changes are tried in the order of their cost to the user.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from typing import Any

from optprof import optimizers
from optprof.scenarios import Scenario, factories, hardware
from optprof.scenarios.hardware import CONTEXT_BYTES, Gpu
from optprof.scenarios.spec import MOST_MICRO_BATCHES

from ..allocator.blocks import Block, Lane
from ..allocator.caching import CachingAllocator
from ..allocator.out_of_memory import OutOfMemoryError
from ..allocator.settings import AllocatorSettings
from ..records.fits import LARGEST_BATCH, Change, Fit
from ..records.outcome import is_ours, one_line
from ..tracing.stream import Segment
from ..training.optimizer import deciding_options
from .batches import Stream, StreamCache

MOST_CHANGES = 3
MOST_TOGETHER = 3
MOST_REPEATS = 6
EXPANDABLE = "expandable_segments:True"
_Key = tuple[bytes, AllocatorSettings]


class Fitting:
    """Answers for scenarios on GPUs; a model is traced once for all GPUs and optimizers."""

    def __init__(self) -> None:
        self._streams = StreamCache()
        # A batch is looked at several times in a row.
        self._stream = lru_cache(maxsize=8)(self._streams.of)
        # By the stream's digest: the peak on an unlimited device, and the bytes left on a GPU.
        self._reserved: dict[_Key, int] = {}
        self._left_on: dict[tuple[str, int, _Key], int | None] = {}

    def fit_all(
        self, scenarios: Sequence[Scenario], started: Callable[[int, Scenario], None]
    ) -> list[Fit]:
        """Answer for all scenarios; `started` gets the place of each before it is simulated.

        After an optimizer's code has raised an error, the optimizer is not simulated again, and its
        answers hold the error. ValueError if every optimizer has raised one.
        """
        fits: list[Fit] = []
        errors: dict[tuple[str, str], Exception] = {}
        for place, scenario in enumerate(scenarios):
            started(place, scenario)
            key = _optimizer_of(scenario)
            if key not in errors:
                try:
                    fits.append(
                        self.fit(
                            scenario, [other for other in scenarios if other.gpu == scenario.gpu]
                        )
                    )
                    continue
                except Exception as error:
                    errors[key] = error
            usable = hardware.describe(scenario.gpu or "").usable_bytes
            fits.append(Fit(scenario=scenario, usable=usable, error=one_line(errors[key])))
        if errors and all(fit.error for fit in fits):
            first = next(iter(errors.values()))
            raise ValueError(str(first) if is_ours(first) else one_line(first)) from first
        return fits

    def fit(self, scenario: Scenario, others: Sequence[Scenario] = ()) -> Fit:
        """Answer for the scenario on the GPU that it names, with the largest batch and the changes.

        `others` are the same scenario with other optimizers, any of which may be a change that
        makes it fit. ValueError for an unknown GPU and for a scenario that cannot be simulated.
        """
        answer, gpu = self.fit_as_is(scenario), hardware.describe(scenario.gpu or "")
        if answer.reason is not None:
            return answer
        batch = self._largest_batch(scenario, gpu)
        changes: Iterator[Change] = iter(())
        if answer.left is None:
            changes = self._changes(scenario, others, batch, gpu, self._dtypes(scenario))
        return replace(
            answer,
            largest_batch=batch,
            failing_batch=None if batch is None or batch >= LARGEST_BATCH else batch + 1,
            changes=tuple(changes),
        )

    def fit_as_is(self, scenario: Scenario) -> Fit:
        """Answer for the scenario on the GPU that it names, without other batches and changes."""
        gpu = hardware.describe(scenario.gpu or "")
        answer = Fit(
            scenario=scenario,
            usable=gpu.usable_bytes,
            deciding_options=deciding_options(scenario.optimizer),
            reason=hardware.unsupported(gpu, scenario, self._dtypes(scenario)),
        )
        if answer.reason is not None:
            return answer
        left = self._left(scenario, gpu)
        fits_with_nccl = None
        if answer.nccl is not None and left is not None:
            fits_with_nccl = self._left(scenario, gpu, taken=answer.nccl[1]) is not None
        return replace(
            answer,
            needed=self._reserved_by(scenario),
            left=left,
            fits_with_nccl=fits_with_nccl,
            may_fit=left is None and self._left(scenario, gpu, optional=False) is not None,
        )

    def _dtypes(self, scenario: Scenario) -> frozenset[str]:
        """Return the dtypes that a factory gave its parameters; empty if the scenario names one."""
        return self._streams.dtypes(scenario) if scenario.dtype is None else frozenset()

    def _left(
        self, scenario: Scenario, gpu: Gpu, *, optional: bool = True, taken: int = 0
    ) -> int | None:
        """Return the bytes not reserved at the step's peak; None if it runs out of memory.

        `optional` counts optional workspaces of kernels at their largest. `taken` bytes of the GPU
        belong to others.
        """
        stream, usable = self._stream(scenario, optional=optional), gpu.usable_bytes - taken
        if stream.requested_peak > usable:
            return None
        settings = AllocatorSettings.parse(scenario.alloc_conf)
        key = stream.digest, settings
        # A device that is never full acts as an unlimited one, except that a limit on the process
        # releases segments early, and that the range of an expandable segment depends on the size.
        is_shared = settings.memory_fraction == 1 and not settings.expandable_segments
        if is_shared and self._reserved.get(key, sys.maxsize) <= usable:
            return usable - self._reserved[key]
        place = gpu.name, taken, key
        if place not in self._left_on:
            occupied = CONTEXT_BYTES + taken
            allocator = CachingAllocator(settings, total=gpu.memory_bytes, occupied=occupied)
            self._left_on[place] = None
            with suppress(OutOfMemoryError):
                _run(stream, allocator)
                reserved = allocator.peak_reserved_bytes
                self._left_on[place] = usable - reserved
                if is_shared and not allocator.releases:
                    self._reserved[key] = reserved
        return self._left_on[place]

    def _reserved_by(self, scenario: Scenario) -> int:
        """Return the peak of reserved bytes on an unlimited device."""
        stream = self._stream(scenario, optional=True)
        settings = AllocatorSettings.parse(scenario.alloc_conf)
        key = stream.digest, settings
        if key not in self._reserved:
            allocator = CachingAllocator(settings)
            _run(stream, allocator)
            self._reserved[key] = allocator.peak_reserved_bytes
        return self._reserved[key]

    def _largest_batch(self, scenario: Scenario, gpu: Gpu) -> int | None:
        """Return the largest batch that fits, 0 for none.

        None if the model's factory takes no batch size, or refuses some sizes.
        """
        if ":" in scenario.model and not factories.takes(scenario.model, "batch_size"):
            return None

        def fits(batch: int) -> bool:
            return self._left(replace(scenario, batch_size=batch), gpu) is not None

        def requested(batch: int) -> int:
            return self._stream(replace(scenario, batch_size=batch), optional=True).requested_peak

        try:
            own, most = scenario.batch_size, max(scenario.batch_size, LARGEST_BATCH)
            # Requested bytes need no allocator, and grow nearly on a line.
            room, rise = gpu.usable_bytes - requested(own), requested(2 * own) - requested(own)
            guess = own + own * room // rise if rise > 0 else most
            most = largest(lambda batch: requested(batch) <= gpu.usable_bytes, guess, most)
            # Near the answer a larger batch may fit where a smaller one does not, so the search
            # always begins at the top: the answer does not depend on the other GPUs.
            return largest(fits, most, most)
        except Exception:
            # A factory may refuse a size, such as an odd one.
            if ":" not in scenario.model:
                raise
            return None

    def _changes(
        self,
        scenario: Scenario,
        others: Sequence[Scenario],
        batch: int | None,
        gpu: Gpu,
        dtypes: Collection[str],
    ) -> Iterator[Change]:
        """Yield the cheapest changes that make the step fit, none that contains another of them."""
        enough: list[Mapping[str, Any]] = []
        for change in candidates(scenario, others, batch or 0, gpu, dtypes):
            if any(smaller.items() <= change.items() for smaller in enough):
                continue
            try:
                left = self._left(replace(scenario, **change), gpu)
            except Exception:
                # Some models cannot be checkpointed, some optimizers cannot be traced.
                continue
            if left is not None:
                enough.append(change)
                yield Change(fields=change, left=left)
            if len(enough) == MOST_CHANGES:
                return


def largest(fits: Callable[[int], bool], guess: int, most: int) -> int:
    """Return the largest number up to `most` for which `fits` holds, 0 for none.

    The steps away from the guess double until the answer is passed; the rest is bisected. A guess
    that is right takes two calls, or one if it is `most`.
    """
    low, high = 0, most + 1
    step, is_passed = 1, False
    place = guess
    while high - low > 1:
        place = (low + high) // 2 if is_passed else min(max(place, low + 1), high - 1)
        if fits(place):
            is_passed |= high <= most
            low, place = place, place + step
        else:
            is_passed |= low > 0
            high, place = place, place - step
        step *= 2
    return low


def candidates(
    scenario: Scenario,
    others: Sequence[Scenario],
    batch: int,
    gpu: Gpu,
    dtypes: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Return changes of a scenario, up to three together, the cheapest for its user first.

    `batch` is the largest that fits, 0 for none; `dtypes` are torch's names of the dtypes that a
    factory gave its parameters.

    Another setting of the allocator costs nothing and is tried alone. A fused optimizer is faster.
    A loop in place of foreach slows the optimizer's step, accumulating smaller batches slows the
    whole step, and recomputing activations slows it by about a third. Another optimizer needs
    another learning rate, and bf16 weights round what they learn.
    """
    parts: list[tuple[int, dict[str, Any]]] = []
    if scenario.implementation == "foreach":
        ways = optimizers.implementations(scenario.optimizer, "cuda")
        parts += [
            (cost, {"implementation": way})
            for cost, way in ((1, "fused"), (2, "loop"))
            if way in ways
        ]
    micro_batches = scenario.micro_batches * -(-scenario.batch_size // batch) if batch else 0
    if 0 < batch < scenario.batch_size and micro_batches <= MOST_MICRO_BATCHES:
        parts.append((4, {"batch_size": batch, "micro_batches": micro_batches}))
    if not scenario.checkpointing:
        parts.append((8, {"checkpointing": True}))
    fields = ("optimizer", "options", "implementation")
    parts += [
        (16, {name: getattr(other, name) for name in fields})
        for other in others
        if _optimizer_of(other) != _optimizer_of(scenario)
    ]
    is_fp32 = scenario.dtype == "fp32" or set(dtypes) == {"float32"}
    if is_fp32 and scenario.amp is None and gpu.has_bf16:
        parts.append((32, {"dtype": "bf16"}))
    costs: list[tuple[int, dict[str, Any]]] = []
    for count in range(1, MOST_TOGETHER + 1):
        for chosen in combinations(parts, count):
            change = {name: value for _, part in chosen for name, value in part.items()}
            # Two parts that set the same field exclude each other.
            if len(change) == sum(len(part) for _, part in chosen):
                costs.append((sum(cost for cost, _ in chosen), change))
    costs.sort(key=lambda pair: pair[0])
    free = [] if scenario.alloc_conf else [{"alloc_conf": EXPANDABLE}]
    return free + [change for _, change in costs]


def _optimizer_of(scenario: Scenario) -> tuple[str, str]:
    """Return a key that two scenarios share if they name one optimizer with the same options."""
    return scenario.optimizer, repr(scenario.options)


def _run(stream: Stream, allocator: CachingAllocator) -> None:
    """Run the stream, and repeat its last step until the allocator's peak stays the same.

    On a full device a later step may run out of memory although the earlier ones did not.
    """
    blocks: dict[int, Block] = {}
    nbytes, malloc, free = stream.allocations.nbytes, allocator.malloc, allocator.free
    lanes = {number: Lane(place) for number, place in stream.allocations.streams.items()}

    def run(segments: list[Segment]) -> None:
        for segment in segments:
            for event in segment.events:
                if event < 0:
                    free(blocks.pop(~event))
                elif event in lanes:
                    blocks[event] = malloc(nbytes[event], lanes[event])
                else:
                    blocks[event] = malloc(nbytes[event])

    run(stream.segments[: stream.last_step])
    before = set(blocks)
    run(stream.segments[stream.last_step :])
    for _ in range(MOST_REPEATS):
        peak = allocator.peak_reserved_bytes, allocator.retries
        # A step that leaves blocks behind is not the step that follows.
        if set(blocks) != before:
            return
        run(stream.segments[stream.last_step :])
        if (allocator.peak_reserved_bytes, allocator.retries) == peak:
            return
