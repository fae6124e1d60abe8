"""Options that commands share, as typer reads them. Those of a scenario come from its fields."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from inspect import Parameter, signature
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from optprof.scenarios import Scenario
from optprof.scenarios.spec import Option

Optimizers = Annotated[
    str,
    typer.Option(
        "--optimizers",
        "-o",
        help="Names and options, as in adamw,sm3:momentum=0.9; or module:Class.",
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run, or its name under runs/.")
]
TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write scalars, HParams and pictures for TensorBoard, too."),
]
Replace = Annotated[
    bool,
    typer.Option("--force", help="Write over a page, or into a folder, that is not optprof's."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print only JSON on stdout; everything else goes to stderr.")
]
Anonymous = Annotated[
    bool, typer.Option("--anonymous", help="Leave out the machine and every path.")
]
Markdown = Annotated[
    bool,
    typer.Option(
        "--markdown", help="Print a Markdown table for a pull request, and nothing else on stdout."
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The optimizer that the report compares the others with.",
        show_default="adamw, else adam, else the first",
    ),
]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="Print the whole traceback of what went wrong.")
]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of the commands that run scenarios."""

    snapshot: Annotated[
        bool,
        typer.Option(
            "--snapshot",
            help=(
                "Write snapshots/*.pickle of steps simulated or on CUDA, for"
                " pytorch.org/memory_viz."
            ),
        ),
    ] = False
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help=(
                "Write torch.profiler's trace of measured iterations, for Perfetto and TensorBoard."
            ),
        ),
    ] = False
    tensorboard: TensorBoard = False
    baseline: Baseline = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run that is there: skip what it has recorded as ok."
        ),
    ] = False
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds that a scenario may take.", show_default="no limit"),
    ] = None
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help=(
                "Measure on CUDA even what needs more memory than is free, and write into a folder"
                " that holds other files."
            ),
        ),
    ] = False
    no_report: Annotated[
        bool,
        typer.Option(
            "--no-report",
            help="Only measure; `optprof report` draws the page later, here or elsewhere.",
        ),
    ] = False
    as_json: AsJson = False
    anonymous: Anonymous = False
    traceback: Traceback = False


def parameters_of(function: Callable[..., None], without: Collection[str]) -> list[Parameter]:
    """Return the parameters of a command, with one for each option.

    `**fields` stands for an option for each field of Scenario but those `without` one, a parameter
    that is a `RunOptions` for each of its fields. Every command has --traceback.
    """
    parameters = signature(function).parameters.values()
    expanded = [each for each in parameters if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
    if any(each.kind is Parameter.VAR_KEYWORD for each in parameters):
        expanded += _scenario_parameters({*without, *(each.name for each in parameters)})
    for each in parameters:
        if each.annotation is RunOptions:
            expanded += [
                _keyword(option.name, option.type, option.default) for option in fields(RunOptions)
            ]
        elif each.kind is Parameter.KEYWORD_ONLY:
            expanded.append(each)
    if all(each.name != "traceback" for each in expanded):
        expanded.append(_keyword("traceback", Traceback, False))
    return expanded


def arguments_of(function: Callable[..., None], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command, from a value for each of its `parameters_of`."""
    arguments: dict[str, Any] = {}
    own = signature(function).parameters.values()
    for each in own:
        if each.annotation is RunOptions:
            arguments[each.name] = RunOptions(
                **{option.name: values[option.name] for option in fields(RunOptions)}
            )
        elif each.kind is Parameter.VAR_KEYWORD:
            names = values.keys() - {other.name for other in own}
            arguments |= {
                option.name: _field_value(option, values[option.name])
                for option in fields(Scenario)
                if option.name in names
            }
        else:
            arguments[each.name] = values[each.name]
    return arguments


def _scenario_parameters(without: Collection[str]) -> Iterator[Parameter]:
    hints = get_type_hints(Scenario, include_extras=True)
    for field in fields(Scenario):
        hint, *extras = get_args(hints[field.name]) or (None,)
        for option in extras:
            if isinstance(option, Option) and field.name not in without:
                yield _scenario_parameter(field, hint, option)


def _scenario_parameter(field: Field[Any], hint: Any, option: Option) -> Parameter:
    kind = _kind(hint)
    # A flag turns its field over, so it is always False by default.
    default = False if kind is bool else option.default or field.default
    if option.unset or kind == list[str]:
        kind, default = kind | None, None
    names = option.names
    if not any(name.startswith("--") for name in names):
        names = (f"--{field.name.replace('_', '-')}", *names)
    shown = option.unset or True
    described = typer.Option(
        *names, help=option.help, show_default=shown, envvar=[*option.variables] or None
    )
    return _keyword(field.name, Annotated[kind, described], default)


def _kind(hint: Any) -> Any:
    """Return the type that typer is to read; Scenario checks the rest, in its own words."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = get_args(hint)[0]
    return {Literal: str, Mapping: list[str]}.get(get_origin(hint), hint)


def _keyword(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _field_value(field: Field[Any], value: Any) -> Any:
    from optprof.scenarios.models import read_config

    if isinstance(value, bool):
        return value != field.default
    return read_config(value or ()) if field.name == "config" else value
