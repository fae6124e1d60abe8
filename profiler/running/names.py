"""Names and values of a request that can be checked in an instant, before torch is loaded.

`plan` checks all of a request again, and what only torch knows.
"""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from optprof.optimizers import require_name
from optprof.scenarios import Scenario, hardware, models
from optprof.scenarios.spec import Device, usual


def require_names(names: Iterable[str], specs: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Raise ValueError for the first model, optimizer, GPU or value that is wrong.

    `fields` are other fields of Scenario, None for a default; "auto" is the usual device.
    """
    for name in names:
        models.describe(name)
    for spec in specs:
        require_name(spec)
    if fields.get("gpu") is not None:
        hardware.describe(fields["gpu"])
    values = {name: value for name, value in fields.items() if value is not None}
    device = usual("device", values.pop("device", "auto"))
    if device != "auto":
        known = get_args(Device)
        if device not in known:
            raise ValueError(f"device must be one of auto, {', '.join(known)}, got {device!r}")
        values["device"] = device
    Scenario(**{"model": "tiny", **values})
