"""Names on a command line: which a shell completes, and which are code. Nothing loads torch."""

import ast
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

Complete = Callable[[str], list[str]]

# module:Class in a list of optimizers, in which options follow a colon too; no address and no text.
_OWN_CODE = re.compile(r"(?:^|,)\s*(?:[^\W\d][\w.]*|[^:,=]+\.py):[^\W\d][\w.]*\s*(?:[:,]|$)")


def names_code(names: str) -> bool:
    """Return whether a list of models or optimizers has module:Class or module:factory."""
    return _OWN_CODE.search(names) is not None


def choices(names: Collection[str]) -> Complete | None:
    """Return the completion of one of these names; None for none."""
    return (lambda incomplete: _begun(names, incomplete)) if names else None


def model_names(incomplete: str) -> list[str]:
    """Return the models of the catalogue that begin so."""
    from optprof.scenarios import models

    return _begun(models.available(), incomplete)


def gpu_names(incomplete: str) -> list[str]:
    """Return the GPUs of the catalogue that begin so; a list continues after its last comma."""
    from optprof.scenarios import hardware

    return _continued(hardware.available(), incomplete)


def optimizer_names(incomplete: str) -> list[str]:
    """Return the optimizers that begin so; a list continues after its last comma."""
    from optprof import optimizers

    return _continued(optimizers.available(), incomplete)


def accumulation_names(incomplete: str) -> list[str]:
    """Return the ways to accumulate that begin so."""
    return _begun(list(_accumulations()), incomplete)


def suite_names(incomplete: str) -> list[str]:
    """Return the suites that begin so."""
    from optprof.scenarios import suites

    return _begun(suites.available(), incomplete)


def run_names(incomplete: str) -> list[str]:
    """Return the runs below runs/ that begin so."""
    return _begun([path.parent.name for path in Path("runs").glob("*/records.jsonl")], incomplete)


def metric_names(incomplete: str) -> list[str]:
    """Return the figures that `optprof explain` knows and that begin so."""
    from optprof.reports.explain import FIGURES

    return _begun(FIGURES, incomplete)


def _accumulations() -> Iterator[str]:
    """Yield the names in the source of the wrappers' catalogue: importing it would load torch."""
    path = Path(__file__).parent.parent / "optimizers" / "accumulation" / "catalogue.py"
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Dict):
            for key in statement.value.keys:
                if isinstance(key, ast.Constant):
                    yield str(key.value)


def _begun(names: Collection[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _continued(names: Collection[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _begun(names, last)]
