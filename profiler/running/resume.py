"""Which scenarios of a run are still to be done, and which of its records stand."""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from scenarios import Scenario

from ..record import Record

# A figure found with another version of these may be another figure.
VERSIONS = ("optprof", "torch", "transformers")
_ENCODER = json.JSONEncoder(sort_keys=True)


def pending(scenarios: Iterable[Scenario], records: Sequence[Record], environment: Mapping[str, Any]) -> list[Scenario]:
    """The scenarios without a record that is ok and was found in an environment like this one.

    Environments are alike when their versions of optprof, torch and transformers are and, for what was measured, the processor or the GPU.
    """
    done = {(_key(record.scenario), _place(record.scenario, record.environment)) for record in standing(records) if record.outcome == "ok"}
    return [scenario for scenario in scenarios if (_key(scenario), _place(scenario, environment)) not in done]


def standing(records: Iterable[Record]) -> list[Record]:
    """Of records of the same scenario the last, in the order of the first."""
    return list({_key(record.scenario): record for record in records}.values())


def _key(scenario: Scenario) -> bytes:
    # Through JSON, which makes tuples lists. `asdict` would copy every value before; the texts of
    # 100,000 scenarios would take ten times the room of their digests.
    return sha256(_ENCODER.encode(vars(scenario)).encode()).digest()


def _place(scenario: Scenario, environment: Mapping[str, Any]) -> tuple[object, ...]:
    versions, machine = _mapping(environment.get("versions")), _mapping(environment.get("machine"))
    device = {"sim": None, "cpu": machine.get("cpu"), "cuda": machine.get("gpu")}[scenario.device]
    return (*(str(versions.get(name)) for name in VERSIONS), str(device))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
