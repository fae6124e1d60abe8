"""Which scenarios of a run are still to be done, and which of its records stand."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from optprof.scenarios import Scenario

from ..records.privacy import OF_THE_MACHINE, disclosed_scenario
from ..records.record import Record
from ..records.store import file_name

# A figure found with another version of these may be another figure.
VERSIONS = ("optprof", "torch", "transformers")


def pending(
    scenarios: Iterable[Scenario],
    records: Sequence[Record],
    environment: Mapping[str, Any],
    lost: Collection[str] = (),
    *,
    anonymous: bool = False,
) -> list[Scenario]:
    """The scenarios without a record that is ok, complete, and was found in an environment like
    this one.

    Environments are alike when their versions of optprof, torch and transformers are and, for what
    was measured, the processor or the GPU. A run that goes on `anonymous` takes its own records,
    which name none, for found on this machine. A record is complete when all that belongs to it was
    kept, and its timeline is none of the `lost`, which are names of scenarios' files.
    """
    done = {
        (scenario_key(record.scenario), _place(record.scenario, record.environment))
        for record in standing(records)
        if record.outcome == "ok" and not record.lost and file_name(record.scenario) not in lost
    }
    nowhere = {name: value for name, value in environment.items() if name not in OF_THE_MACHINE}
    places = [environment, nowhere] if anonymous else [environment]
    return [
        scenario
        for scenario in scenarios
        if not any((scenario_key(scenario), _place(scenario, place)) in done for place in places)
    ]


def standing(records: Iterable[Record]) -> list[Record]:
    """Of records of the same scenario the last, in the order of the first."""
    return list({scenario_key(record.scenario): record for record in records}.values())


def scenario_key(scenario: Scenario) -> bytes:
    """A key that is the same for equal scenarios and no others, whether they are anonymous or
    not.
    """
    # Whoever has no records need not wait for it.
    import msgspec

    # Through JSON, which makes tuples lists. The texts of 100,000 scenarios would take ten times
    # the room of their digests.
    asked = vars(disclosed_scenario(scenario, anonymous=True))
    return sha256(msgspec.json.encode(asked, order="deterministic")).digest()


def _place(scenario: Scenario, environment: Mapping[str, Any]) -> tuple[object, ...]:
    versions, machine = _mapping(environment.get("versions")), _mapping(environment.get("machine"))
    device = {"sim": None, "cpu": machine.get("cpu"), "cuda": machine.get("gpu")}[scenario.device]
    return (*(str(versions.get(name)) for name in VERSIONS), str(device))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
