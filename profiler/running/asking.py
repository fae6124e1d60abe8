"""Asking from a program: a comparison in Python's words, run from beginning to end."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from optprof import optimizers

from ..records.record import Record
from ..records.store import RunStore
from ..safety.disk import require_own_folder
from .plan import Comparison, plan, require_timeout
from .runner import run


def ask(
    comparison: Comparison,
    folder: Path,
    *,
    timeout: float | None = None,
    force: bool = False,
    anonymous: bool = False,
) -> list[Record]:
    """Return the records of a comparison, left in a new run in the folder.

    ValueError for a request that cannot be met. `force` measures what may not fit, and writes into
    a folder that holds other files.
    """
    require_timeout(timeout)
    scenarios = plan(comparison)
    require_own_folder(folder, "records.jsonl", force=force)
    store = RunStore.create(folder)
    store.anonymous = anonymous
    try:
        run(scenarios, store, lambda _place, _scenario: None, timeout=timeout, force=force)
        return store.read()
    finally:
        store.close()


def comparison(
    models: str | Sequence[str], specs: str | Sequence[str], options: Mapping[str, Any]
) -> Comparison:
    """The comparison of models and optimizers, in lists or as the command line takes them;
    ValueError for an option that is none.
    """
    known = [
        field.name for field in fields(Comparison) if field.name not in ("models", "optimizers")
    ]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known) or known
            raise ValueError(f"no option is named {name!r}; did you mean {', '.join(near)}?")
    named = optimizers.parse_list(specs) if isinstance(specs, str) else list(specs)
    return Comparison(
        models=[models] if isinstance(models, str) else list(models), optimizers=named, **options
    )
