"""Optimizers by name: made and described from text such as `sm3:momentum=0.9`.

A name is one of the catalogue or one that another package adds by an entry point. `module:Class`
names any other importable subclass of torch.optim.Optimizer; on the command line the module may be
in the current directory.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from .catalogue import CATALOGUE, available, find
from .entries import CatalogueEntry, Factory
from .kernels import can_compile
from .spec import (
    Parameters,
    defaults,
    known_options,
    one_line,
    parse,
    refusal,
    require_complete,
    require_known,
    unknown,
)
from .ways import SWITCHES, WAYS, Implementation, chosen_way


@dataclass(frozen=True, kw_only=True)
class _Request:
    """An optimizer with the options to make it; its constructor knows each of them.

    `written` are the options of the text and the call, `options` also has the catalogue's. `ways`
    can be switched on, in the constructor or later in the groups.
    """

    name: str
    entry: CatalogueEntry
    factory: Factory
    known: Parameters
    written: Mapping[str, Any]
    options: Mapping[str, Any]
    ways: tuple[Implementation, ...]

    @property
    def is_own_class(self) -> bool:
        """Return whether it is a class of the user's, named as module:Class."""
        return not self.entry.package


def goes_by_names(spec: str) -> bool:
    """Return whether an optimizer needs `named_parameters()`: the names decide about its state."""
    entry = find(parse(spec)[0])
    return entry is not None and entry.goes_by_names


def implementations(spec: str, device: str | None = None) -> tuple[Implementation, ...]:
    """Return the ways to run an optimizer's step, on one type of device if that is given."""
    request = _read(spec, {})
    return ("loop", *(way for way in request.ways if _has_way(request.entry, way, device)))


def default_implementation(spec: str, device: str) -> Implementation:
    """Return how an optimizer's step runs on a type of device by default.

    Its text or its constructor decides. If they leave it open, CUDA has what torch chooses there:
    foreach, for Adafactor the loop. A CPU has the fused step of torch's optimizers and of ours, the
    fastest, if these options have one and ours finds a C++ compiler; else the loop.
    """
    request = _read(spec, {})
    # A parameter with a value, because a constructor may read it.
    made = create(spec, [torch.nn.Parameter(torch.ones(1, 1))])
    options = {**defaults(request.known), **request.options, **made.defaults}
    way = chosen_way(options)
    if way is None:
        # torch's `fused` defaults to None, and False chooses the loop; ours defaults to False.
        unfused = (
            options.get("fused") is False and defaults(request.known).get("fused", False) is None
        )
        opens_foreach = request.entry.foreach_by_default and not unfused
        if device == "cpu":
            is_fused = _is_fused_on_cpu(request) and not needs_compiler(spec)
            way = "fused" if is_fused else "loop"
        else:
            way = "foreach" if opens_foreach else "loop"
    return way if way != "foreach" or "foreach" in request.ways else "loop"


def needs_compiler(spec: str, **options: Any) -> bool:
    """Return whether an optimizer's step would be fused on a CPU if there were a C++ compiler."""
    request = _read(spec, options)
    is_ours = request.entry.package == "optprof"
    return is_ours and _is_fused_on_cpu(request) and not can_compile()


def _is_fused_on_cpu(request: _Request) -> bool:
    """Return whether torch's or our optimizer has a fused step on a CPU with these options."""
    # How other packages and the user's own classes run fused steps is not known.
    if request.entry.package not in ("torch", "optprof") or "fused" not in request.ways:
        return False
    if not _has_way(request.entry, "fused", "cpu"):
        return False
    param = torch.nn.Parameter(torch.ones(1, 1))
    try:
        create(request.name, [param], implementation="fused", **request.options)
    except (ValueError, RuntimeError):
        # The text says fused=False, or has an option such as differentiable=True.
        return False
    return True


# Where our classes that are not in the catalogue can be imported from in every release.
_FACES = ("optprof.optimizers", "optprof.optimizers.accumulation")


def name_of(optimizer: Optimizer) -> str:
    """Return the name of an optimizer that exists: the catalogue's, else `module:Class`.

    The module of our own classes is the package that offers them, wherever their code is.
    """
    kind = type(optimizer)
    for name, entry in CATALOGUE.items():
        if entry.package in ("torch", "optprof") and entry.load() is kind:
            return name
    public = [face for face in _FACES if getattr(import_module(face), kind.__name__, None) is kind]
    return f"{public[0] if public else kind.__module__}:{kind.__qualname__}"


def option_defaults(spec: str, **options: Any) -> dict[str, Any]:
    """Return every hyper-parameter's value: as given, else the catalogue's or the constructor's."""
    request = _read(spec, options)
    values = {**defaults(request.known), **request.options}
    return {name: value for name, value in values.items() if name not in SWITCHES}


def create(
    spec: str, params: ParamsT, *, implementation: Implementation | None = None, **options: Any
) -> Optimizer:
    """Make the optimizer that `spec` names over `params`; `options` override those in the text.

    `implementation` is the way to run the step; None leaves it to the optimizer. Raises ValueError,
    in one line, for a name, an option or a value that does not fit.
    """
    request = _read(spec, options)
    switched = [f"{way}=True" for way in SWITCHES if request.options.get(way)]
    if len(switched) > 1:
        raise ValueError(
            f"{request.name} is given {' and '.join(switched)}, which are ways to run one step;"
            " leave one in"
        )
    switches = _switches(request, implementation) if implementation else {}
    arguments = {**request.options, **switches}
    require_complete(request.name, arguments, request.known)
    try:
        made = request.factory(params, **arguments)
        if implementation:
            _switch_groups(made, request, implementation)
        return made
    except TypeError as error:
        # torch compares values before it checks their types, so momentum=fast ends in a TypeError.
        if not request.written:
            raise
        raise ValueError(refusal(request.name, request.written, error)) from error
    except Exception as error:
        # Other packages have error types of their own for a value that does not fit.
        if isinstance(error, ValueError) or request.entry.package in ("", "optprof", "torch"):
            raise
        raise ValueError(refusal(request.name, request.written, error)) from error


def _read(spec: str, options: Mapping[str, Any]) -> _Request:
    name, in_text = parse(spec)
    entry = find(name) or _own_class(name)
    factory = _factory(name, entry)
    # The first parameter takes the parameters to optimize.
    known, takes_others = known_options(factory)
    written = {**in_text, **options}
    arguments = {**entry.options, **written}
    # A constructor of the catalogue puts other options into a group, where they have no effect: a
    # typing error.
    if entry.package or not takes_others:
        require_known(name, arguments, known)
    names = {*known, *_inherited(factory)}
    return _Request(
        name=name,
        entry=entry,
        factory=factory,
        known=known,
        written=written,
        options=arguments,
        ways=tuple(way for way in SWITCHES if way in names and _has_way(entry, way, None)),
    )


def _has_way(entry: CatalogueEntry, way: Implementation, device: str | None) -> bool:
    """Return whether the step really has a way that its options name, on the device."""
    if way == "compiled" or not entry.package:
        return True
    if way == "foreach":
        return entry.has_foreach
    return bool(entry.fused_on) and device in (None, *entry.fused_on)


def _inherited(factory: Factory) -> set[str]:
    """Return "foreach" if the class whose `step` runs has that option.

    A class Mine(AdamW) hides it if its constructor takes only the parameters and a learning rate.
    """
    if not isinstance(factory, type):
        return set()
    # torch wraps a step in its class's namespace when the class's first instance is made.
    step = inspect.unwrap(factory.step)
    owner = next(
        kind
        for kind in reversed(factory.__mro__)
        if inspect.unwrap(vars(kind).get("step", type)) is step
    )
    return {"foreach"} & inspect.signature(owner).parameters.keys()


def _switches(request: _Request, implementation: Implementation) -> dict[str, bool]:
    """Return the options that choose a way; ValueError if the request's contradict it."""
    if implementation not in WAYS:
        raise ValueError(f"implementation must be one of {', '.join(WAYS)}, got {implementation!r}")
    for way in SWITCHES:
        value = request.options.get(way)
        if value is not None and bool(value) != (way == implementation):
            raise ValueError(
                f"{request.name} is given {way}={value} and implementation {implementation!r};"
                " leave one out"
            )
    if not request.is_own_class:
        _require_way(request, implementation)
    return {way: way == implementation for way in SWITCHES if way in request.known}


def _require_way(
    request: _Request, implementation: Implementation, made: Optimizer | None = None
) -> None:
    """Raise ValueError for a way that the step does not have."""
    # A class may choose a way itself that its constructor does not offer.
    is_hidden = (
        made is not None
        and implementation not in request.known
        and made.defaults.get(implementation)
    )
    if implementation not in ("loop", *request.ways) and not is_hidden:
        raise ValueError(f"{request.name} has no {implementation} implementation; ask for loop")


def _switch_groups(made: Optimizer, request: _Request, implementation: Implementation) -> None:
    """Set the switches that a constructor does not name, in every group that has them."""
    _require_way(request, implementation, made)
    hidden = [way for way in SWITCHES if way not in request.known]
    for group in (made.defaults, *made.param_groups):
        group.update({way: way == implementation for way in hidden if way in group})


def _factory(name: str, entry: CatalogueEntry) -> Factory:
    if not entry.is_installed:
        raise ValueError(
            f"{name} needs the package {entry.package}, which is not installed; pip install"
            f" {entry.installed_by}"
        )
    try:
        return entry.load()
    except Exception as error:
        raise ValueError(f"cannot load {name} from {entry.package}: {one_line(error)}") from error


def _own_class(name: str) -> CatalogueEntry:
    """Return an entry without a package for `module:Class`."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(unknown("optimizer", name, available()))
    no_value = f"option {attribute!r} of {module} has no value; write {module}:{attribute}=VALUE"
    if not all(map(str.isidentifier, module.split("."))):
        raise ValueError(
            no_value
            if module in CATALOGUE
            else f"{module!r} is no module; an optimizer is NAME or module:Class, got {name!r}"
        )
    try:
        imported = import_module(module)
    except ModuleNotFoundError as error:
        # An error in the module's own code is the user's, even if it is a missing module.
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        if module in CATALOGUE:
            raise ValueError(no_value) from error
        raise ValueError(f"cannot import {module} for {name}: {one_line(error)}") from error
    if not hasattr(imported, attribute):
        # In the order of the code, and then those that the module loads late.
        names = dict.fromkeys([*vars(imported), *dir(imported)])
        classes = [key for key in names if _is_optimizer(getattr(imported, key, None))]
        raise ValueError(unknown(f"class in {module}", attribute, classes))
    kind = getattr(imported, attribute)
    if not _is_optimizer(kind):
        raise ValueError(f"{name} is {kind!r}, not a subclass of torch.optim.Optimizer")
    return CatalogueEntry(factory=kind, summary="", paper="", state="", package="")


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Optimizer)
