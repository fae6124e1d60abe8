"""The wrappers by name: made and described from text such as `gnts:threshold=0.8`."""

from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import Optimizer

from ..entry import Description
from ..options import defaults, known_options, refusal, require_complete, require_known, unknown
from ..spec import parse
from .accumulation import Accumulation
from .hypothesis_test import MetricHypothesisTest
from .noise_scale import GradientNoiseScale
from .wrappers import GradientNormRescaler, GradientNormThreshold, ScheduledBatch

_PAPER = "https://pypi.org/project/torch-gqc/"
_STATE = "no tensor; with buffered=true one in float32 like each parameter, 4 bytes a parameter"

_WRAPPERS: dict[str, tuple[type[Accumulation], Description]] = {
    "gnr": (
        GradientNormRescaler,
        Description(
            summary="steps at every micro-batch, its gradient brought to a norm",
            paper=_PAPER,
            state="no tensor",
        ),
    ),
    "gns": (
        GradientNoiseScale,
        Description(
            summary="steps once the gradient noise scale is low for the micro-batches drawn",
            paper="https://arxiv.org/abs/1812.06162",
            state="a scalar a parameter during a backward pass; "
            "with buffered=true a tensor in float32 like each parameter, 4 bytes a parameter",
            decided_by=("buffered",),
        ),
    ),
    "gnts": (
        GradientNormThreshold,
        Description(
            summary="steps once the norm of the mean gradient is below a threshold",
            paper=_PAPER,
            state=_STATE,
            decided_by=("buffered",),
        ),
    ),
    "mht": (
        MetricHypothesisTest,
        Description(
            summary="steps once the mean of a metric, the loss, is known well enough",
            paper=_PAPER,
            state=_STATE,
            decided_by=("buffered",),
        ),
    ),
    "sbc": (
        ScheduledBatch,
        Description(
            summary="steps once a batch of a size that may be scheduled is full",
            paper=_PAPER,
            state=_STATE,
            decided_by=("buffered",),
        ),
    ),
}


def available() -> tuple[str, ...]:
    """The names of the wrappers, sorted."""
    return tuple(sorted(_WRAPPERS))


def describe(name: str) -> Description:
    """What the catalogue says of a wrapper; ValueError for a name that is none."""
    return _find(name)[1]


def option_defaults(spec: str, **options: Any) -> dict[str, Any]:
    """Every option that has a value: as given, else the constructor's; ValueError for a name or an
    option that does not fit.
    """
    _, wrapper, given = _choose(spec, options)
    return {**defaults(known_options(wrapper)[0]), **given}


def create(spec: str, optimizer: Optimizer, **options: Any) -> Accumulation:
    """The wrapper that `spec` names, around `optimizer`; `options` win over those in the text.

    Raises ValueError, in one line, for a name, an option or a value that does not fit.
    """
    name, wrapper, given = _choose(spec, options)
    try:
        return wrapper(optimizer, **given)
    except TypeError as error:
        if not given or not isinstance(optimizer, Optimizer):
            raise
        raise ValueError(refusal(name, given, error)) from error


def _choose(
    spec: str, options: Mapping[str, Any]
) -> tuple[str, type[Accumulation], dict[str, Any]]:
    name, written = parse(spec)
    wrapper, _ = _find(name)
    known, _ = known_options(wrapper)
    given = {**written, **options}
    require_known(name, given, known)
    require_complete(name, given, known)
    return name, wrapper, given


def _find(name: str) -> tuple[type[Accumulation], Description]:
    if name not in _WRAPPERS:
        raise ValueError(unknown("accumulation", name, available()))
    return _WRAPPERS[name]
