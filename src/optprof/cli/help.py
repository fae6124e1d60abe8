"""Help: commands and options in groups, readable at 60 columns.

typer's own help cuts the descriptions of commands, and knows no groups without its boxes.
"""

from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from optprof.reports.streams import set_verbosity

from .standing import type_standing

# The widest column of names.
_NAMES = 22


class Command(TyperCommand):
    """A command that shows its options in groups, and takes standing options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the arguments that are left over; put standing options into `sys.argv`."""
        given = list(args)
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing and "standing" in ctx.params:
            set_verbosity(ctx.params["verbose"] - ctx.params["quiet"])
            type_standing(ctx, given)
        return rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help: usage, description, arguments, and a list for each group of options."""
        _write_help(self, ctx, formatter, "")
        groups = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            groups.setdefault(_group(parameter), []).append(_row(parameter))
        _write_lists(formatter, groups)


class Group(TyperGroup):
    """The commands, with their whole descriptions."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help: usage, description, commands and options."""
        _write_help(self, ctx, formatter, "COMMAND ...")
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            title = getattr(command, "rich_help_panel", None) or "Commands"
            groups.setdefault(title, []).append((name, _first_sentence(command.help)))
        groups["Options"] = [_row(parameter) for parameter in self.get_params(ctx)]
        _write_lists(formatter, groups)
        formatter.write_paragraph()
        formatter.write_text("optprof COMMAND -h lists the options of a command.")


def _write_help(command: Any, ctx: Any, formatter: Any, more: str) -> None:
    arguments = (_argument(each) for each in command.params if _is_argument(each))
    formatter.write_usage(ctx.command_path, " ".join(("[OPTIONS]", *arguments, more)).strip())
    command.format_help_text(ctx, formatter)


def _write_lists(formatter: Any, groups: dict[str, list[tuple[str, str]]]) -> None:
    for title, rows in groups.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows, col_max=_NAMES)


def _is_argument(parameter: Any) -> bool:
    return parameter.param_type_name == "argument"


def _group(parameter: Any) -> str:
    if _is_argument(parameter):
        return "Arguments"
    # --help itself has no group.
    is_ours = hasattr(parameter, "rich_help_panel")
    return (parameter.rich_help_panel or "Options") if is_ours else "Other options"


def _argument(parameter: Any) -> str:
    name = parameter.metavar.rstrip(".") + ("..." if parameter.nargs < 0 else "")
    return name if parameter.required else f"[{name}]"


def _row(parameter: Any) -> tuple[str, str]:
    if _is_argument(parameter):
        return _argument(parameter), parameter.help
    names = ", ".join(sorted(parameter.opts, key=len))
    value = "" if parameter.is_flag or parameter.metavar is None else f" {parameter.metavar}"
    return f"{names}{value}", " ".join((parameter.help or "", *_notes(parameter))).strip()


def _notes(parameter: Any) -> Iterator[str]:
    """Yield the value without the option, and the variables that set it."""
    default = parameter.show_default if isinstance(parameter.show_default, str) else None
    if default is None and not parameter.is_flag and parameter.default not in (None, ""):
        default = parameter.default
    if default is not None:
        yield f"[default: {default}]"
    if parameter.envvar:
        yield f"[variables: {', '.join(parameter.envvar)}]"


def _first_sentence(text: str | None) -> str:
    return (text or "").partition("\n\n")[0].replace("\n", " ")
