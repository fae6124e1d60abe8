"""The search for the number of GPUs that a training step needs, if ranks share its work.

Numbers of ranks are tried from the smallest up, so the first that fits is the smallest without any
assumption about those above it. A number is not simulated if a rank's part of the parameters and
gradients alone exceeds the GPU. A process is in one group of ranks at a time, so all answers for
one number come before those for the next.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from optprof.scenarios import Scenario, hardware
from optprof.scenarios.parallel import read_parallel, require_ranks

from ..records.fits import Fit
from ..records.outcome import is_ours, one_line
from ..training.optimizer import deciding_options
from .fitting import Fitting
from .simulation import simulate
from .training import trace_model, without_optimizer


def on_ranks(scenario: Scenario, ranks: int, parallel: str) -> Scenario:
    """Return the scenario on so many ranks; a single one runs plainly, unless it shares layers.

    ValueError for a number of ranks that the way does not take.
    """
    require_ranks(parallel, ranks, 0)
    way = None if ranks == 1 else parallel
    return replace(scenario, ranks=ranks, rank=0, parallel=way)


def fit_ranks(
    scenarios: Mapping[int, Sequence[Scenario]], started: Callable[[int, Scenario], None]
) -> list[Fit]:
    """Return the answers for each number of ranks, up to the first that fits with room for NCCL.

    `scenarios` has those of each number. `started` gets the place of each before it is simulated.
    After an optimizer's code has raised an error, the optimizer is not simulated again, and its
    answer holds the error. ValueError if every optimizer has raised one.
    """
    fits: list[Fit] = []
    settled: set[tuple[str | None, str, str]] = set()
    errors: dict[tuple[str, str], Exception] = {}
    place = 0
    for _, group in sorted(scenarios.items()):
        fitting, rank = Fitting(), _fullest_rank(group)
        for scenario in group:
            optimizer = scenario.optimizer, repr(scenario.options)
            started(place, scenario)
            place += 1
            if (key := (scenario.gpu, *optimizer)) in settled:
                continue
            try:
                fit = _fit(fitting, replace(scenario, rank=rank), errors.get(optimizer))
            except Exception as error:
                errors[optimizer] = error
                fit = _fit(fitting, scenario, error)
            fits.append(fit)
            if fit.is_sure or fit.reason is not None or fit.error is not None:
                settled.add(key)
    if errors and all(fit.error for fit in fits):
        first = next(iter(errors.values()))
        raise ValueError(str(first) if is_ours(first) else one_line(first)) from first
    return fits


def _fit(fitting: Fitting, scenario: Scenario, error: Exception | None) -> Fit:
    """Answer for one scenario, without a simulation if its share alone is too large."""
    gpu = hardware.describe(scenario.gpu or "")
    answer = Fit(
        scenario=scenario,
        usable=gpu.usable_bytes,
        deciding_options=deciding_options(scenario.optimizer),
    )
    if error is not None:
        return replace(answer, error=one_line(error))
    least = least_bytes(scenario)
    if least > gpu.usable_bytes and hardware.unsupported(gpu, scenario) is None:
        return replace(answer, least=least)
    return fitting.fit_as_is(scenario)


def least_bytes(scenario: Scenario) -> int:
    """Return bytes that the rank holds at least: its parameters and their gradients.

    The first rank has the largest part of each parameter, so its share is not below the average.
    """
    nbytes = _whole_bytes(without_optimizer(replace(scenario, ranks=1, rank=0, parallel=None)))
    if scenario.parallel is None:
        return nbytes
    way = read_parallel(scenario.parallel)
    if way.cpu_offload or (scenario.rank and way.data not in ("ddp", "zero1")):
        return 0
    return nbytes if way.data in ("ddp", "zero1") else -(-nbytes // scenario.ranks)


@lru_cache(maxsize=4)
def _whole_bytes(scenario: Scenario) -> int:
    """Return the bytes of all parameters, and of the gradients that each step surely has."""
    model = trace_model(replace(scenario, workload="state", gpu=None))
    sizes = {layout.number: layout.nbytes for layout, _ in model.parameters}
    # A model of a user's may leave parameters without a gradient.
    if ":" not in scenario.model:
        gradients = (part for each in model.gradients[0] if each for part in each.parts)
        sizes |= {part.number: part.nbytes for part in gradients}
    return sum(sizes.values())


def _fullest_rank(group: Iterable[Scenario]) -> int:
    """Return the rank that keeps the most state; the first, except under ZeRO-1.

    ZeRO-1 gives whole parameters to ranks, and the first need not have the most.
    """
    scenario = next(iter(group))
    if scenario.parallel is None or read_parallel(scenario.parallel).data != "zero1":
        return 0
    try:
        record = simulate(
            replace(scenario, workload="state", optimizer="sgd", options={}, gpu=None)
        )
    except Exception:
        return 0
    elements = record.ranks.elements if record.ranks else ()
    return max(range(len(elements)), key=elements.__getitem__, default=0)
