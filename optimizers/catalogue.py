"""The catalogue: every optimizer by its name, made and described from text such as
`sm3:momentum=0.9`.

Ours, torch's, those of the zoo whose package is installed, and those that other packages add by an
entry point. `module:Class` names any other subclass of torch.optim.Optimizer that can be imported;
the command line lets that be one of the current directory.
"""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from . import plugins
from .baselines import BASELINES
from .entry import Description, Entry, Factory
from .lamb import LAMB
from .lamb16 import LAMB16
from .options import (
    defaults,
    known_options,
    one_line,
    refusal,
    require_complete,
    require_known,
    unknown,
)
from .sgd_sai import SGDSaI
from .sm3 import SM3
from .spec import parse
from .zoo import ZOO

Implementation = Literal["loop", "foreach", "fused", "compiled"]

_CATALOGUE: dict[str, Entry] = {
    **BASELINES,
    **ZOO,
    "lamb": Entry(
        factory=LAMB,
        description=Description(
            summary="Adam's step, rescaled tensor by tensor to the norm of the weights",
            paper="https://arxiv.org/abs/1904.00962",
            state=(
                "8 bytes a parameter, also in half precision; a float32 step count where the bias"
                " is corrected"
            ),
            decided_by=("preset", "bias_correction"),
        ),
    ),
    "lamb16": Entry(
        factory=LAMB16,
        fused_on=("cpu",),
        description=Description(
            summary="LAMB with both moments in float8",
            paper="https://github.com/vxst/LAMB16",
            state="2 bytes a parameter and 12 a tensor, 8 with scale=upstream",
            decided_by=("scale",),
        ),
    ),
    "sgd-sai": Entry(
        factory=SGDSaI,
        description=Description(
            summary="SGD with momentum, scaled once by the first gradient's signal-to-noise ratio",
            paper="https://arxiv.org/abs/2412.11768",
            state=(
                "one tensor like the parameter and a scalar: 4 bytes a parameter in float32; the"
                " scalar alone at momentum 0"
            ),
            decided_by=("momentum",),
        ),
    ),
    "sm3": Entry(
        factory=SM3,
        fused_on=("cpu",),
        description=Description(
            summary="Adagrad with one accumulator an axis",
            paper="https://arxiv.org/abs/1901.11150",
            state=(
                "4 bytes for each row, column and so on of a tensor; with momentum one tensor like"
                " the parameter on top"
            ),
            decided_by=("momentum",),
        ),
    ),
}

# Options that say how a step is run, not what it computes; `implementation` names them too.
_RUNNING: tuple[Implementation, ...] = ("foreach", "fused", "compiled")


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """An optimizer that was found, the options requested of it, and those with what the catalogue
    sets.

    Its constructor knows each. `ways` are the ways to run its step that can be set, in its
    constructor or later in its groups.
    """

    name: str
    entry: Entry | None
    factory: Factory
    known: Mapping[str, inspect.Parameter]
    asked: Mapping[str, Any]
    options: Mapping[str, Any]
    ways: tuple[Implementation, ...]

    @property
    def is_foreign(self) -> bool:
        """Return whether a package other than torch brings it."""
        return self.entry is not None and self.entry.package not in ("optprof", "torch")


def available(*packages: str) -> tuple[str, ...]:
    """The names of what can be made here, sorted: of all, or of these packages, such as "optprof"
    or "torch".
    """
    named = {name: entry.package for name, entry in _CATALOGUE.items() if entry.is_installed}
    added = {
        name: plugins.owner(points[0])
        for name, points in plugins.found().items()
        if len(points) == 1 and name not in _CATALOGUE
    }
    clashing = _CATALOGUE.keys() & plugins.found().keys()
    return tuple(
        sorted(
            name
            for name, package in {**named, **added}.items()
            if name not in clashing and package in (packages or {package})
        )
    )


def describe(name: str) -> Description:
    """What the catalogue says of one of its names, whether its package is installed or not;
    ValueError for any other.
    """
    entry = _find(name)
    if entry is None:
        raise ValueError(unknown("optimizer", name, available()))
    return entry.description


def goes_by_names(spec: str) -> bool:
    """Whether the parameters' names decide what it keeps of them: give it `named_parameters()`
    then.
    """
    entry = _find(parse(spec)[0])
    return entry is not None and entry.goes_by_names


def implementations(spec: str, device: str | None = None) -> tuple[Implementation, ...]:
    """The ways in which its step can be run; on one type of device, such as "cpu" or "cuda", where
    that is given.
    """
    choice = _choose(spec, {})
    return ("loop", *(way for way in choice.ways if _has(choice.entry, way, device)))


def default_implementation(spec: str, device: str) -> Implementation:
    """Return how its step runs on a type of device unless a user says otherwise.

    As its text or its constructor says. Where they leave it open, as torch settles it: foreach on
    CUDA and the loop on a CPU; for Adafactor the loop on both.
    """
    choice = _choose(spec, {})
    # With a value, which a constructor may read.
    made = create(spec, [torch.nn.Parameter(torch.ones(1, 1))])
    options = {**defaults(choice.known), **choice.options, **made.defaults}
    for way in ("compiled", "fused"):
        if options.get(way):
            return way
    foreach = options.get("foreach")
    if foreach is None:
        foreach = device != "cpu" and not _settles_on_loop(choice, options)
    return "foreach" if foreach and "foreach" in choice.ways else "loop"


def _settles_on_loop(choice: _Choice, options: Mapping[str, Any]) -> bool:
    by_default = choice.entry is None or choice.entry.foreach_by_default
    # Torch's fused is None unless somebody sets it, and False then chooses the loop. Ours is False
    # by itself.
    unfused = options.get("fused") is False and defaults(choice.known).get("fused", False) is None
    return unfused or not by_default


def name_of(optimizer: Optimizer) -> str:
    """What an optimizer that somebody has made goes by here: its name for ours and torch's own
    classes, `module:Class` for all others.
    """
    kind = type(optimizer)
    return next(
        (name for name, entry in _CATALOGUE.items() if entry.factory is kind),
        f"{kind.__module__}:{kind.__qualname__}",
    )


def option_defaults(spec: str, **options: Any) -> dict[str, Any]:
    """Every hyper-parameter with its value: as given, else as the catalogue or the constructor sets
    it.
    """
    choice = _choose(spec, options)
    return {
        name: value
        for name, value in {**defaults(choice.known), **choice.options}.items()
        if name not in _RUNNING
    }


def create(
    spec: str, params: ParamsT, *, implementation: Implementation | None = None, **options: Any
) -> Optimizer:
    """The optimizer that `spec` names, over `params`; `options` win over those in the text.

    `implementation` says how the step is run, None leaves that to the optimizer. Raises ValueError,
    in one line, for a name, an option or a value that does not fit.
    """
    choice = _choose(spec, options)
    written = [f"{way}=True" for way in _RUNNING if choice.options.get(way)]
    if len(written) > 1:
        raise ValueError(
            f"{choice.name} is given {' and '.join(written)}, which are ways to run one step; leave"
            " one in"
        )
    given = {**choice.options, **(_running(choice, implementation) if implementation else {})}
    require_complete(choice.name, given, choice.known)
    try:
        made = choice.factory(params, **given)
        if implementation:
            _set_hidden(made, choice, implementation)
        return made
    except TypeError as error:
        if not choice.asked:
            raise
        # torch compares values before it looks at their types: momentum=fast ends in "'<=' not
        # supported between ...".
        raise ValueError(refusal(choice.name, choice.asked, error)) from error
    except Exception as error:
        # Other packages have kinds of their own for a value that does not fit.
        if isinstance(error, ValueError) or not choice.is_foreign:
            raise
        raise ValueError(refusal(choice.name, choice.asked, error)) from error


def _choose(spec: str, options: Mapping[str, Any]) -> _Choice:
    name, written = parse(spec)
    entry = _find(name)
    factory = _factory(name, entry) if entry else _load(name)
    # The first parameter takes the parameters to optimize.
    known, takes_others = known_options(factory)
    asked = {**written, **options}
    given = {**(entry.options if entry else {}), **asked}
    # What the constructors of the catalogue take beyond their named options ends in a group and
    # does nothing: it is a slip of the pen.
    if entry or not takes_others:
        require_known(name, given, known)
    named = {*known, *_inherited(factory)}
    ways: tuple[Implementation, ...] = tuple(
        way for way in _RUNNING if {way} & named and _has(entry, way, None)
    )
    return _Choice(
        name=name, entry=entry, factory=factory, known=known, asked=asked, options=given, ways=ways
    )


def _has(entry: Entry | None, way: Implementation, device: str | None) -> bool:
    """Return whether a way that the options name is one that the step has on the device."""
    if entry is None or way == "compiled":
        return True
    if way == "foreach":
        return entry.has_foreach
    return bool(entry.fused_on) and device in (None, *entry.fused_on)


def _inherited(factory: Factory) -> set[str]:
    """The choice of foreach that a class has from the class whose `step` it runs.

    A class Mine(AdamW) hides it where its own constructor takes the parameters and a learning rate
    alone.
    """
    if not isinstance(factory, type):
        return set()
    # Torch wraps a step at the first instance of a class, in the namespace of that class.
    step = inspect.unwrap(factory.step)
    owner = next(
        kind
        for kind in reversed(factory.__mro__)
        if inspect.unwrap(vars(kind).get("step", type)) is step
    )
    return {"foreach"} & inspect.signature(owner).parameters.keys()


def _running(choice: _Choice, implementation: Implementation) -> dict[str, bool]:
    """The options that have the step run in one way and in no other; ValueError for options that
    contradict it.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"implementation must be one of {', '.join(get_args(Implementation))}, got"
            f" {implementation!r}"
        )
    for way in _RUNNING:
        value = choice.options.get(way)
        if value is not None and bool(value) != (way == implementation):
            raise ValueError(
                f"{choice.name} is given {way}={value} and implementation {implementation!r}; leave"
                " one out"
            )
    if choice.entry is not None:
        _require_way(choice, implementation)
    return {way: way == implementation for way in _RUNNING if way in choice.known}


def _require_way(
    choice: _Choice, implementation: Implementation, made: Optimizer | None = None
) -> None:
    """Raise ValueError for a way that the step does not have."""
    # A class may choose by itself what it does not let others choose.
    hidden = (
        made is not None
        and implementation not in choice.known
        and made.defaults.get(implementation)
    )
    if implementation not in ("loop", *choice.ways) and not hidden:
        raise ValueError(f"{choice.name} has no {implementation} implementation; ask for loop")


def _set_hidden(made: Optimizer, choice: _Choice, implementation: Implementation) -> None:
    """Set the ways to run a step that a constructor does not name, in every group that has them."""
    _require_way(choice, implementation, made)
    for group in (made.defaults, *made.param_groups):
        group.update(
            {
                way: way == implementation
                for way in _RUNNING
                if way in group and way not in choice.known
            }
        )


def _find(name: str) -> Entry | None:
    """The entry of a name, None where there is none; ValueError where two packages claim it or
    where one cannot be loaded.
    """
    added = plugins.found().get(name, ())
    if len(added) + (name in _CATALOGUE) > 1:
        ours = [_CATALOGUE[name].package] if name in _CATALOGUE else []
        claims = ", ".join([*ours, *(f"{plugins.owner(point)} ({point.value})" for point in added)])
        raise ValueError(
            f"{name} is the name of several optimizers, by {claims}; write module:Class for the one"
            " that you mean"
        )
    return plugins.load(added[0]) if added else _CATALOGUE.get(name)


def _factory(name: str, entry: Entry) -> Factory:
    if not entry.is_installed:
        raise ValueError(
            f"{name} needs the package {entry.package}, which is not installed; pip install"
            f" {entry.installed_by}"
        )
    try:
        return entry.load()
    except Exception as error:
        raise ValueError(f"cannot load {name} from {entry.package}: {one_line(error)}") from error


def _load(name: str) -> type[Optimizer]:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(unknown("optimizer", name, available()))
    if not all(map(str.isidentifier, module.split("."))):
        raise ValueError(
            f"{module!r} is no module; an optimizer is NAME or module:Class, got {name!r}"
        )
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # What the module's own code raises is the user's, a module that it does not find too.
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        hint = f"; an option is written {module}:{attribute}=VALUE" if module in _CATALOGUE else ""
        raise ValueError(f"cannot import {module} for {name}: {one_line(error)}{hint}") from error
    if not hasattr(imported, attribute):
        raise ValueError(
            unknown(
                f"class in {module}",
                attribute,
                [key for key, value in vars(imported).items() if _is_optimizer(value)],
            )
        )
    found = getattr(imported, attribute)
    if not _is_optimizer(found):
        raise ValueError(f"{name} is {found!r}, not a subclass of torch.optim.Optimizer")
    return found


def _is_optimizer(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Optimizer)
