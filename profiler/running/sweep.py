"""A suite becomes scenarios, and a forecast of what running them holds and takes."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optprof import optimizers
from optprof.scenarios import Scenario
from optprof.scenarios.suites import Suite

from ..records.record import Record
from .plan import Comparison, plan

# Of GPT-2 an hour and a quarter, where no two scenarios share their model's trace.
MOST_FOLLOWED = 1 << 16


def sweep(suite: Suite, allowed: Collection[str]) -> list[Scenario]:
    """The scenarios of a suite, checked as `plan` checks; ValueError names what is wrong.

    `allowed` are the names `module:Class` and `module:factory` that the command line has given: no
    others run, whatever the suite says.
    """
    found: dict[Scenario, Scenario] = {}
    for question in suite.questions:
        _refuse_code(question, allowed)
        given = {
            name: value for name, value in question.items() if name not in ("model", "optimizer")
        }
        asked = Comparison(
            models=[question["model"]], optimizers=[question.get("optimizer", "adamw")], **given
        )
        for scenario in plan(asked):
            # plan adds the family's states, for a curve that a suite asks for itself.
            if (scenario.model, scenario.workload) == (question["model"], asked.workload):
                found.setdefault(scenario, scenario)
    _require_end(found.values())
    return list(found.values())


def _require_end(scenarios: Iterable[Scenario]) -> None:
    """Raise ValueError for a suite whose simulations would take hours; measured scenarios are
    simulated too, for two steps.
    """
    followed = sum(
        scenario.micro_batches * (scenario.steps if scenario.device == "sim" else 2)
        for scenario in scenarios
    )
    if followed > MOST_FOLLOWED:
        raise ValueError(
            f"a suite has at most {MOST_FOLLOWED} micro-batches in all simulated steps, got"
            f" {followed}; make it several suites"
        )


def _refuse_code(question: Mapping[str, Any], allowed: Collection[str]) -> None:
    try:
        optimizer, _ = optimizers.parse(question.get("optimizer", "adamw"))
    except (RecursionError, MemoryError):
        raise ValueError(f"cannot read the optimizer {question['optimizer'][:40]!r}") from None
    for name in (question["model"], optimizer):
        if ":" in name and name not in allowed:
            raise ValueError(
                f"a suite runs no code of its own, got {name!r}; if you trust it, give --allow"
                f" {name} beside the suite"
            )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one scenario would hold and take: bytes by its simulation, None where that says nothing,
    and the seconds it has taken.
    """

    scenario: Scenario
    record: Record
    simulation_seconds: float

    @property
    def peak_bytes(self) -> int | None:
        """The most that the allocator would reserve."""
        return self.record.memory.peak_reserved if self.record.memory else None

    @property
    def peak_upper(self) -> int | None:
        """The upper end of that where it is a range."""
        return self.record.memory.peak_reserved_upper if self.record.memory else None

    @property
    def seconds(self) -> float | None:
        """The time that running it takes: what its simulation took now and, where it is measured,
        `most_seconds`; None for a course.
        """
        from ..measuring.measurement import most_seconds

        measuring = 0.0 if self.scenario.device == "sim" else most_seconds(self.scenario)
        return None if measuring is None else self.simulation_seconds + measuring


def forecast(
    scenarios: Sequence[Scenario],
    simulate: Callable[[Scenario], Record],
    started: Callable[[int, Scenario], None],
) -> list[Forecast]:
    """Each scenario simulated, measured ones too, and nothing kept."""
    found = []
    for place, scenario in enumerate(scenarios):
        started(place, scenario)
        start = time.monotonic()
        record = simulate(scenario)
        found.append(
            Forecast(scenario=scenario, record=record, simulation_seconds=time.monotonic() - start)
        )
    return found
