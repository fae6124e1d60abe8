"""Options that commands share, as typer reads them. Those of a scenario come from its fields."""

from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from dataclasses import Field, dataclass, fields
from inspect import Parameter, signature
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from optprof.reports.streams import say
from optprof.scenarios import Scenario
from optprof.scenarios.spec import Option, usual

from .names import accumulation_names, choices, gpu_names, optimizer_names, run_names
from .standing import read_standing

Optimizers = Annotated[
    str,
    typer.Option(
        "--optimizers",
        "-o",
        metavar="NAMES",
        help="Names and options, as in adamw,sm3:momentum=0.9; or module:Class.",
        autocompletion=optimizer_names,
    ),
]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder of a run, or its name in runs/.", autocompletion=run_names
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Also write scalars, HParams and pictures for TensorBoard."),
]
Replace = Annotated[
    bool,
    typer.Option("--force", help="Write over a page, or into a folder, that is not optprof's."),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print only JSON on stdout, with an entry `error` if the command fails."
    ),
]
Anonymous = Annotated[
    bool,
    typer.Option(
        "--anonymous",
        help="Leave out the machine and every path, so that you can share the result.",
    ),
]
Threshold = Annotated[
    str,
    typer.Option(
        metavar="PERCENT",
        help="A time has changed if the whole interval of its ratio is further from 1.",
    ),
]
AcrossMachines = Annotated[
    bool, typer.Option("--across-machines", help="Compare times of different machines too.")
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
        help="The optimizer that the others are compared with.",
        show_default="adamw, else adam, else the first",
    ),
]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="Print the whole traceback of an error.")
]
# Options of commands that write files.
_WRITING: Mapping[str, Any] = {
    "quiet": Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors alone.")
    ],
    "verbose": Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Print more: the seconds of each scenario, each file."
        ),
    ],
    "standing": Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file with standing options.",
            show_default="[tool.optprof] of ./pyproject.toml",
            is_eager=True,
            callback=read_standing,
        ),
    ],
}
# Completions of scenario fields other than their choices.
_COMPLETIONS: Mapping[str, Any] = {"gpu": gpu_names, "accumulate": accumulation_names}


def _whole_number(text: Any) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"must be a whole number, got {text!r}") from None


def _number(text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"must be a number, got {text!r}") from None


# typer's own words for a wrong number do not say what was found.
_PARSERS: Mapping[Any, Any] = {int: _whole_number, float: _number}
# Options that stand first in --help, in this order.
_MOST_USED = ("optimizers", "device", "gpu", "batch_size", "sequence_length", "dtype", "out")
# Words for the value of an option that names none, by its type.
_METAVARS = {int: "N", float: "NUMBER", Path: "PATH"}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of the commands that run scenarios."""

    snapshot: Annotated[
        bool,
        typer.Option(
            "--snapshot",
            help="Write snapshots/*.pickle of simulated and CUDA steps for pytorch.org/memory_viz.",
        ),
    ] = False
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help=(
                "Keep torch.profiler's trace of measured steps; `optprof report RUN --trace` draws"
                " it."
            ),
        ),
    ] = False
    tensorboard: TensorBoard = False
    baseline: Baseline = None
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            help="Simulations at once on this machine; a scenario that measures runs alone.",
            show_default="as cores and memory allow",
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the existing run: skip scenarios that are recorded as ok."
        ),
    ] = False
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Limit for one scenario.", show_default="no limit"),
    ] = None
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help=(
                "Measure on CUDA although free memory is too small, and write into a folder that"
                " holds other files."
            ),
        ),
    ] = False
    nnodes: Annotated[
        int,
        typer.Option(help="Machines that measure the ranks; run the same command on each."),
    ] = 1
    rdzv_endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the machines meet, as for torchrun; HOST keeps the records.",
            show_default="this machine",
        ),
    ] = None
    no_report: Annotated[
        bool,
        typer.Option(
            "--no-report",
            help="Write records alone; `optprof report` draws the page later, here or elsewhere.",
        ),
    ] = False
    as_json: AsJson = False
    anonymous: Anonymous = False
    traceback: Traceback = False


def parameters_of(function: Callable[..., None], without: Collection[str]) -> list[Parameter]:
    """Return the parameters of a command, in the order of its help, one for each option.

    `**fields` stands for an option for each field of Scenario except those `without` one, a
    parameter that is a `RunOptions` for each of its fields. Every command has --traceback; commands
    that write files have -q, -v and --config.
    """
    parameters = signature(function).parameters.values()
    expanded = [each for each in parameters if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
    if any(each.kind is Parameter.VAR_KEYWORD for each in parameters):
        fields_of_step = _scenario_parameters({*without, *(each.name for each in parameters)})
        expanded += [_in_panel(each, "Training step") for each in fields_of_step]
    for each in parameters:
        if each.annotation is RunOptions:
            expanded += [
                _in_panel(_keyword(option.name, option.type, option.default), "Run")
                for option in fields(RunOptions)
            ]
        elif each.kind is Parameter.KEYWORD_ONLY:
            expanded.append(each)
    common = {"traceback": Traceback}
    if any(each.name == "anonymous" for each in expanded):
        common = {**_WRITING, **common}
    for name, annotation in common.items():
        if all(each.name != name for each in expanded):
            default = None if name == "standing" else False
            expanded.append(_in_panel(_keyword(name, annotation, default), "Other options"))
    return sorted(map(_described, expanded), key=_rank)


def _rank(parameter: Parameter) -> int:
    """Return the place of a parameter: arguments, then the options that people use most."""
    if parameter.name in _MOST_USED:
        return _MOST_USED.index(parameter.name) + 1
    return len(_MOST_USED) + 1 if parameter.kind is Parameter.KEYWORD_ONLY else 0


def _described(parameter: Parameter) -> Parameter:
    """Return an option with a word for its value; a flag also gets a name that turns it off."""
    kind, described = _parts(parameter)
    if not isinstance(described, OptionInfo):
        return parameter
    if parameter.name in _MOST_USED:
        described.rich_help_panel = None
    if kind is bool:
        described.param_decls = tuple(
            f"{name}/{_opposite(name)}" if name.startswith("--") else name
            for name in described.param_decls or (f"--{parameter.name}",)
        )
    elif described.metavar is None:
        is_folder = parameter.name == "out"
        described.metavar = "FOLDER" if is_folder else _METAVARS.get(_kind(kind), "VALUE")
    described.parser = _PARSERS.get(_kind(kind))
    return parameter.replace(annotation=Annotated[kind, described], kind=Parameter.KEYWORD_ONLY)


def _opposite(flag: str) -> str:
    return f"--{flag.removeprefix('--no-')}" if flag.startswith("--no-") else f"--no-{flag[2:]}"


def _in_panel(parameter: Parameter, panel: str) -> Parameter:
    """Return the parameter, shown below this title in --help."""
    kind, described = _parts(parameter)
    described.rich_help_panel = panel
    return parameter.replace(annotation=Annotated[kind, described])


def _parts(parameter: Parameter) -> tuple[Any, Any]:
    """Return the type of a parameter and a copy of its typer.Option or typer.Argument."""
    kind, described = get_args(parameter.annotation)[:2]
    described = copy(described)
    if isinstance(described.default, str):
        # typer keeps the first name of an annotated option there.
        described.param_decls = (described.default, *(described.param_decls or ()))
        described.default = ...
    return kind, described


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


def check_early(values: Mapping[str, Any]) -> None:
    """Check the options of a command before anything is loaded.

    Raises ValueError for an option whose package is missing; says what --dtype fp16 is not.
    """
    from optprof.profiler.machine.doctor import require_installed

    if values.get("tensorboard"):
        require_installed("--tensorboard", "tensorboard")
    if values.get("lora_rank"):
        require_installed("--lora", "peft")
    if values.get("no_report") is False:
        require_installed("a report", "jinja2", "matplotlib", "plotly")
    if "model" in values:
        require_installed("the page of fit", "jinja2")
    if usual("dtype", values.get("dtype")) == "fp16" and not values.get("amp"):
        say("--dtype fp16 trains fp16 parameters; for mixed precision use --amp fp16 instead")


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
        *names,
        help=option.help,
        metavar="KEY=VALUE" if field.name == "config" else "NAME" if _kind(hint) is str else None,
        show_default=shown,
        envvar=[*option.variables] or None,
        autocompletion=_COMPLETIONS.get(field.name) or choices(_literals(hint)),
    )
    return _keyword(field.name, Annotated[kind, described], default)


def _kind(hint: Any) -> Any:
    """Return the type that typer is to read; Scenario checks the rest, in its own words."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = get_args(hint)[0]
    return {Literal: str, Mapping: list[str]}.get(get_origin(hint), hint)


def _literals(hint: Any) -> tuple[str, ...]:
    """Return the texts that a field may have, none for a field of another type."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = get_args(hint)[0]
    return get_args(hint) if get_origin(hint) is Literal else ()


def _keyword(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _field_value(field: Field[Any], value: Any) -> Any:
    from optprof.scenarios.models import read_config

    if isinstance(value, bool):
        return value != field.default
    return read_config(value or ()) if field.name == "config" else value
