"""The search for what fits: every answer is a simulated training step on the GPU's own memory, none
a formula.

A step fits where it has room for the most that cuDNN may take.

Batches are bisected, for more memory never fits less. Where a step does not fit, changes are tried
in the order of what they cost.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from optprof import optimizers
from optprof.scenarios import Scenario, factories, hardware
from optprof.scenarios.hardware import CONTEXT_BYTES, Gpu
from optprof.scenarios.spec import MOST_MICRO_BATCHES

from ..allocator.blocks import Block
from ..allocator.caching import CachingAllocator
from ..allocator.out_of_memory import OutOfMemoryError
from ..allocator.settings import AllocatorSettings
from ..records.fits import LARGEST_BATCH, Change, Fit
from ..records.outcome import is_ours, one_line
from ..tracing.requests import device_of
from ..tracing.stream import Segment
from .batches import Stream, StreamCache
from .replay import play

MOST_CHANGES = 3
MOST_TOGETHER = 3
MOST_REPEATS = 6
EXPANDABLE = "expandable_segments:True"


@dataclass(frozen=True, kw_only=True)
class _Peaks:
    """Of training on a device without end, the most that was reserved and the most that was asked
    for at once.
    """

    reserved: int
    requested: int


class Fitting:
    """Answers for scenarios on GPUs, each model traced once for all GPUs and optimizers that it is
    asked about with.
    """

    def __init__(self) -> None:
        self._streams = StreamCache()
        self._peaks: dict[str, _Peaks] = {}

    def fit_all(
        self, scenarios: Sequence[Scenario], started: Callable[[int, Scenario], None]
    ) -> list[Fit]:
        """Answer for all scenarios; `started` is called with each one's place before it is
        simulated.

        An optimizer whose code raises is simulated no further, and its answers say why. ValueError
        where every optimizer has raised something.
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
        """Whether the scenario runs on the GPU that it names, with what it leaves, the largest
        batch and what would make it fit.

        `others` are the same question to other optimizers, which may be the change that it takes.
        ValueError for an unknown GPU and for what cannot be simulated.
        """
        assert scenario.gpu is not None
        gpu = hardware.describe(scenario.gpu)
        dtypes = self._streams.dtypes(scenario) if scenario.dtype is None else frozenset[str]()
        reason = hardware.lacking(gpu, scenario, dtypes)
        if reason is not None:
            return Fit(scenario=scenario, usable=gpu.usable_bytes, reason=reason)
        left = self._left(scenario, gpu)
        may_fit = left is None and self._left(scenario, gpu, optional=False) is not None
        largest = self._largest_batch(scenario, gpu)
        return Fit(
            scenario=scenario,
            usable=gpu.usable_bytes,
            needed=self._peaks_of(scenario).reserved,
            left=left,
            may_fit=may_fit,
            largest_batch=largest,
            changes=()
            if left is not None
            else tuple(self._changes(scenario, others, largest or 0, gpu, dtypes)),
        )

    def _left(self, scenario: Scenario, gpu: Gpu, *, optional: bool = True) -> int | None:
        """Bytes that torch has not reserved when the step is at its peak; None where it runs out.

        `optional` counts what a kernel may take or not, at its largest.
        """
        peaks = self._peaks_of(scenario, optional=optional)
        if peaks.reserved <= gpu.usable_bytes:
            return gpu.usable_bytes - peaks.reserved
        if peaks.requested > gpu.usable_bytes:
            return None
        # In between it depends on what the allocator can give back in time.
        allocator = CachingAllocator(
            AllocatorSettings.parse(scenario.alloc_conf),
            total=gpu.memory_bytes,
            occupied=CONTEXT_BYTES,
        )
        try:
            _run(self._streams.of(scenario, optional=optional), allocator)
        except OutOfMemoryError:
            return None
        return gpu.usable_bytes - allocator.peak_reserved_bytes

    def _peaks_of(self, scenario: Scenario, *, optional: bool = True) -> _Peaks:
        key = repr((replace(scenario, gpu=None), device_of(scenario.gpu), optional))
        if key not in self._peaks:
            allocator = CachingAllocator(AllocatorSettings.parse(scenario.alloc_conf))
            _run(self._streams.of(scenario, optional=optional), allocator)
            self._peaks[key] = _Peaks(
                reserved=allocator.peak_reserved_bytes, requested=allocator.peak_requested_bytes
            )
        return self._peaks[key]

    def _largest_batch(self, scenario: Scenario, gpu: Gpu) -> int | None:
        """The largest batch that fits, found by doubling and bisection; 0 for none.

        None for a factory that takes no batch size, or not every one.
        """
        if ":" in scenario.model and not factories.takes(scenario.model, "batch_size"):
            return None

        def fits(batch: int) -> bool:
            return self._left(replace(scenario, batch_size=batch), gpu) is not None

        try:
            return largest(fits, scenario.batch_size)
        except Exception:
            # A factory may refuse a size, such as an odd one.
            if ":" not in scenario.model:
                raise
            return None

    def _changes(
        self,
        scenario: Scenario,
        others: Sequence[Scenario],
        batch: int,
        gpu: Gpu,
        dtypes: Collection[str],
    ) -> Iterator[Change]:
        """The cheapest changes under which it fits; none that holds another that is enough by
        itself.
        """
        found: list[Mapping[str, Any]] = []
        for change in candidates(scenario, others, batch, gpu, dtypes):
            if any(enough.items() <= change.items() for enough in found):
                continue
            try:
                left = self._left(replace(scenario, **change), gpu)
            except Exception:
                # Not every model can be checkpointed, not every optimizer run another way or
                # traced.
                continue
            if left is not None:
                found.append(change)
                yield Change(fields=change, left=left)
            if len(found) == MOST_CHANGES:
                return


def largest(fits: Callable[[int], bool], start: int) -> int:
    """The largest number for which `fits` holds, 0 for none: doubled from `start`, or halved, and
    bisected between.

    LARGEST_BATCH, or a `start` above it, where that fits: the search ends there.
    """
    low, high = (start, 2 * start) if fits(start) else (0, start)
    while 0 < low < LARGEST_BATCH:
        high = min(high, LARGEST_BATCH)
        if not fits(high):
            break
        low, high = high, 2 * high
    if low >= LARGEST_BATCH:
        return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def candidates(
    scenario: Scenario,
    others: Sequence[Scenario],
    batch: int,
    gpu: Gpu,
    dtypes: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Changes of a scenario, up to three together, the cheapest for its user first.

    `dtypes` are torch's names of those that a factory of the user's gave its parameters.

    Nothing is lost by another setting of the allocator, which is tried by itself, nor by a fused
    optimizer where there is one. A loop in place of foreach makes the optimizer's step slower, a
    smaller batch whose gradients are accumulated the whole step, and recomputing activations by
    about a third. Another optimizer asks for a learning rate of its own, and bf16 for weights
    rounds what they learn.
    """
    parts: list[tuple[int, dict[str, Any]]] = []
    if scenario.implementation == "foreach":
        known = optimizers.implementations(scenario.optimizer, "cuda")
        parts += [
            (cost, {"implementation": how})
            for cost, how in ((1, "fused"), (2, "loop"))
            if how in known
        ]
    micro_batches = scenario.micro_batches * -(-scenario.batch_size // batch) if batch else 0
    if 0 < batch < scenario.batch_size and micro_batches <= MOST_MICRO_BATCHES:
        parts.append((4, {"batch_size": batch, "micro_batches": micro_batches}))
    if not scenario.checkpointing:
        parts.append((8, {"checkpointing": True}))
    for other in others:
        if _optimizer_of(other) != _optimizer_of(scenario):
            parts.append(
                (
                    16,
                    {
                        name: getattr(other, name)
                        for name in ("optimizer", "options", "implementation")
                    },
                )
            )
    if (
        (scenario.dtype == "fp32" or set(dtypes) == {"float32"})
        and scenario.amp is None
        and gpu.has_bf16
    ):
        parts.append((32, {"dtype": "bf16"}))
    together = (
        chosen for count in range(1, MOST_TOGETHER + 1) for chosen in combinations(parts, count)
    )
    apart = [
        chosen
        for chosen in together
        if len({name for _, part in chosen for name in part})
        == sum(len(part) for _, part in chosen)
    ]
    apart.sort(key=lambda chosen: sum(cost for cost, _ in chosen))
    free = [] if scenario.alloc_conf else [{"alloc_conf": EXPANDABLE}]
    return free + [
        {name: value for _, part in chosen for name, value in part.items()} for chosen in apart
    ]


def _optimizer_of(scenario: Scenario) -> tuple[str, str]:
    """What makes two scenarios ask for the same optimizer."""
    return scenario.optimizer, repr(scenario.options)


def _run(stream: Stream, allocator: CachingAllocator) -> None:
    """Run the stream, and its last step again until the allocator has no more to learn: a full
    device may run out in a later step.
    """
    blocks: dict[int, Block] = {}

    def run(segments: list[Segment]) -> None:
        for segment in segments:
            for _ in play(segment, stream.allocations, allocator, blocks):
                pass

    run(stream.segments[: stream.last_step])
    held = set(blocks)
    run(stream.segments[stream.last_step :])
    for _ in range(MOST_REPEATS):
        seen = allocator.peak_reserved_bytes, allocator.retries
        # A step that leaves something behind is not the step that follows.
        if set(blocks) != held:
            return
        run(stream.segments[stream.last_step :])
        if (allocator.peak_reserved_bytes, allocator.retries) == seen:
            return
