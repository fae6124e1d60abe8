"""Resume: the scenarios of a run that have no valid record yet."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from optprof.scenarios import Scenario

from ..records.record import Environment, Machine, Record
from ..records.store import file_name, scenario_key, standing

# Another version of one of these may give other numbers.
VERSIONS = ("optprof", "torch", "transformers")


def pending(
    scenarios: Iterable[Scenario],
    records: Sequence[Record],
    environment: Environment,
    lost: Collection[str] = (),
    *,
    anonymous: bool = False,
    anywhere: bool = False,
) -> list[Scenario]:
    """Return the scenarios without a complete record that is ok and of an environment like this.

    Environments are alike if their versions of optprof, torch and transformers are and, for
    measured records, the processor or the GPU. The records of an `anonymous` run, which name none,
    count as made on this machine. A record is complete if nothing of it was `lost`; that has the
    names of files whose timelines cannot be read. With `anywhere` a record of any environment is
    complete: the machines of a cluster are not this one.
    """
    complete = [
        record
        for record in standing(records)
        if record.outcome == "ok" and not record.lost and file_name(record.scenario) not in lost
    ]
    if anywhere:
        keys = {scenario_key(record.scenario) for record in complete}
        return [scenario for scenario in scenarios if scenario_key(scenario) not in keys]
    done = {
        (scenario_key(record.scenario), _place(record.scenario, record.environment))
        for record in complete
    }
    unnamed = replace(environment, machine=None)
    environments = [environment, unnamed] if anonymous else [environment]
    return [
        scenario
        for scenario in scenarios
        if not any(
            (scenario_key(scenario), _place(scenario, each)) in done for each in environments
        )
    ]


def _place(scenario: Scenario, environment: Environment) -> tuple[str | None, ...]:
    machine = environment.machine or Machine()
    device = {"sim": None, "cpu": machine.cpu, "cuda": machine.gpu}[scenario.device]
    return (*map(environment.versions.get, VERSIONS), device)
