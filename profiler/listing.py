"""Listings: the names that a user can give, with a few words on each."""

from collections.abc import Callable, Iterator


def listing(what: str) -> Iterator[str]:
    """A line or two on each of the models, optimizers, gpus or suites; ValueError for anything else."""
    if what not in _LISTINGS:
        raise ValueError(f"nothing to list under {what!r}; ask for models, optimizers, gpus or suites")
    return _LISTINGS[what]()


def _models() -> Iterator[str]:
    from scenarios import models

    for name in models.available():
        entry = models.describe(name)
        yield f"{name:<14}{entry.parameter_count if entry else 0:>15,} parameters"


def _optimizers() -> Iterator[str]:
    import optimizers

    for name in optimizers.available():
        found = optimizers.describe(name)
        yield f"{name:<10}{found.summary}\n{'':<10}state: {found.state}"


def _gpus() -> Iterator[str]:
    from scenarios import hardware

    for gpu in map(hardware.describe, hardware.available()):
        size = f"{gpu.memory_bytes / 2**30:.2f} GiB"
        yield f"{gpu.name:<10}{gpu.title:<24}{size:>11}{gpu.bandwidth / 1e9:>7,.0f} GB/s  {', '.join(gpu.rates)}"


def _suites() -> Iterator[str]:
    from scenarios import suites

    for suite in map(suites.load, suites.available()):
        yield f"{suite.name:<12}{suite.description}"


_LISTINGS: dict[str, Callable[[], Iterator[str]]] = {"models": _models, "optimizers": _optimizers, "gpus": _gpus, "suites": _suites}
