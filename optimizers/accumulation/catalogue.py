"""The wrappers by name: made and described from text such as `gnts:threshold=0.8`."""

from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import Optimizer

from ..entries import CatalogueEntry, Factory
from ..spec import (
    defaults,
    known_options,
    parse,
    refusal,
    require_complete,
    require_known,
    unknown,
)
from .accumulation import Accumulation
from .noise_scale import GradientNoiseScale
from .wrappers import (
    GradientNormRescaler,
    GradientNormThreshold,
    MetricHypothesisTest,
    ScheduledBatch,
)

_PAPER = "https://pypi.org/project/torch-gqc/"
_STATE = "no tensor; with buffered=true one in float32 like each parameter, 4 bytes a parameter"

_WRAPPERS: dict[str, CatalogueEntry] = {
    "gnr": CatalogueEntry(
        factory=GradientNormRescaler,
        summary="steps at every micro-batch, its gradient brought to a norm",
        paper=_PAPER,
        state="no tensor",
    ),
    "gns": CatalogueEntry(
        factory=GradientNoiseScale,
        summary="steps once the gradient noise scale is low for the micro-batches drawn",
        paper="https://arxiv.org/abs/1812.06162",
        state="a scalar a parameter during a backward pass; "
        "with buffered=true a tensor in float32 like each parameter, 4 bytes a parameter",
        decided_by=("buffered",),
    ),
    "gnts": CatalogueEntry(
        factory=GradientNormThreshold,
        summary="steps once the norm of the mean gradient is below a threshold",
        paper=_PAPER,
        state=_STATE,
        decided_by=("buffered",),
    ),
    "mht": CatalogueEntry(
        factory=MetricHypothesisTest,
        summary="steps once the mean of a metric, the loss, is known well enough",
        paper=_PAPER,
        state=_STATE,
        decided_by=("buffered",),
    ),
    "sbc": CatalogueEntry(
        factory=ScheduledBatch,
        summary="steps once a batch of a size that may be scheduled is full",
        paper=_PAPER,
        state=_STATE,
        decided_by=("buffered",),
    ),
}


def available() -> tuple[str, ...]:
    """Return the sorted names of the wrappers."""
    return tuple(sorted(_WRAPPERS))


def describe(name: str) -> CatalogueEntry:
    """Return a wrapper's entry; ValueError for an unknown name."""
    if name not in _WRAPPERS:
        raise ValueError(unknown("accumulation", name, available()))
    return _WRAPPERS[name]


def option_defaults(spec: str, **options: Any) -> dict[str, Any]:
    """Return the value of every option that has one: as given, else the constructor's default.

    ValueError for a name or an option that does not fit.
    """
    _, wrapper, arguments = _read(spec, options)
    return {**defaults(known_options(wrapper)[0]), **arguments}


def create(spec: str, optimizer: Optimizer, **options: Any) -> Accumulation:
    """Make the wrapper that `spec` names around an optimizer; `options` override those in the text.

    Raises ValueError, in one line, for a name, an option or a value that does not fit.
    """
    name, wrapper, arguments = _read(spec, options)
    try:
        return wrapper(optimizer, **arguments)
    except TypeError as error:
        if not arguments or not isinstance(optimizer, Optimizer):
            raise
        raise ValueError(refusal(name, arguments, error)) from error


def _read(spec: str, options: Mapping[str, Any]) -> tuple[str, Factory, dict[str, Any]]:
    name, in_text = parse(spec)
    wrapper = describe(name).load()
    known, _ = known_options(wrapper)
    arguments = {**in_text, **options}
    require_known(name, arguments, known)
    require_complete(name, arguments, known)
    return name, wrapper, arguments
