"""Standing options: a file of options that every command takes, as if they had been typed.

The file is `--config FILE`, or else the table [tool.optprof] of the current folder's
pyproject.toml. A key is the long name of an option; a table with the name of a command holds for
that command alone:

    gpu = "a100-80"
    optimizers = ["adamw", "sm3:momentum=0.9"]

    [compare]
    fail-on = ["state>0"]

The command line is stronger than the file. Records and pages name the options as typed, so that
their command repeats the run without the file.
"""

import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from optprof.reports.streams import say
from optprof.scenarios.schema import shown

from .names import names_code

PROJECT = Path("pyproject.toml")
# A hostile file of 1 MiB would keep Python's reader of TOML busy for minutes.
_MOST_BYTES = 1 << 16
# Options that are meant for one call; a stranger's file must not choose a folder to write into, or
# machines to run on.
_FOR_ONE_CALL = (
    "allow",
    "config",
    "dry-run",
    "figures",
    "force",
    "html",
    "on",
    "out",
    "resume",
    "retries",
    "traceback",
)


def read_standing(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options of the file the command's defaults; raise ValueError for a wrong one."""
    if not context.resilient_parsing:
        content = _content(path)
        context.default_map = dict(_defaults(content, context, str(path or PROJECT)))
    return path


def type_standing(context: typer.Context, given: list[str]) -> None:
    """Put the standing options that hold into `sys.argv`, before the `given` arguments."""
    words = [word for each in context.command.params for word in _typed(context, each)]
    if words:
        say(f"standing options from {context.params['standing'] or PROJECT}: {' '.join(words)}")
        names = context.command_path.split()[1:]
        sys.argv[1:] = [*names, *words, *_without_config(given)]


def _content(path: Path | None) -> Mapping[str, Any]:
    """Return the options of a file, or of the project in the current folder if it has some."""
    where = path or PROJECT
    if path is None and not where.is_file():
        return {}
    with where.open("rb") as file:
        # A long file of a project is refused only if it has standing options.
        data = file.read(16 * _MOST_BYTES)
    if path is None and b"tool.optprof" not in data:
        return {}
    if len(data) > _MOST_BYTES:
        raise ValueError(
            f"{where} has more than {_MOST_BYTES >> 10} KiB; keep the options in a smaller file,"
            " and give --config FILE"
        )
    try:
        content = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from None
    tools = content.get("tool")
    project = tools.get("optprof") if isinstance(tools, Mapping) else None
    if project is None:
        return {} if path is None else content
    if not _is_table(project):
        raise ValueError(f"{where}: tool.optprof must be a table, got {shown(project)}")
    return project


def _defaults(
    content: Mapping[str, Any], context: typer.Context, where: str
) -> Iterator[tuple[str, Any]]:
    """Yield the command's parameters that the file sets, each with its value."""
    group: Any = context.parent.command if context.parent else context.command
    options = {name: _options(command) for name, command in group.commands.items()}
    known = {key for each in options.values() for key in each} - {*_FOR_ONE_CALL}
    own_tables = {name: content[name] for name in options if _is_table(content.get(name))}
    common = {key: value for key, value in content.items() if key not in own_tables}
    for key in (key for table in (common, *own_tables.values()) for key in table):
        if key.replace("_", "-") not in known:
            raise ValueError(f"{where}: {_unknown(key, known, options)}")
    own = own_tables.get(context.info_name or "", {})
    for key, value in {**common, **own}.items():
        parameter = options[context.info_name or ""].get(key.replace("_", "-"))
        if parameter is not None:
            yield parameter.name, _value(parameter, value, f"{where}: {key}")


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _options(command: Any) -> dict[str, Any]:
    """Return the options of a command by their long names."""
    return {
        name[2:]: parameter
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("--")
    }


def _unknown(key: str, known: Collection[str], commands: Collection[str]) -> str:
    if key in commands:
        return f"{key} is a command; its options are a table of their own, [{key}]"
    if key.replace("_", "-") in _FOR_ONE_CALL:
        return f"{key} is for one call; give --{key.replace('_', '-')} on the command line"
    near = get_close_matches(key[:40].replace("_", "-"), {*known, *commands}, n=1)
    advice = f"did you mean {near[0]}?" if near else "options are named as in --help"
    return f"no option is named {key[:40]!r}; {advice}"


def _value(parameter: Any, value: Any, where: str) -> Any:
    """Return the value as typer takes it: a list for an option that can be repeated."""
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"{where} must be true or false, got {shown(value)}")
        return value
    values = value if isinstance(value, list) else [value]
    if not values or any(type(each) not in (str, int, float) for each in values):
        raise ValueError(f"{where} must be a text, a number or a list of them, got {shown(value)}")
    texts = [str(each) for each in values]
    if parameter.name == "optimizers" and names_code(",".join(texts)):
        raise ValueError(f"{where} names code, got {shown(value)}; name it on the command line")
    return texts if parameter.multiple else ",".join(texts)


def _typed(context: typer.Context, parameter: Any) -> list[str]:
    """Return the words that give a parameter the value that it has from the file."""
    source = context.get_parameter_source(parameter.name)
    if source is None or source.name != "DEFAULT_MAP":
        return []
    value = context.params[parameter.name]
    if parameter.is_flag:
        return [(parameter.opts if value else parameter.secondary_opts)[0]]
    name = next(name for name in parameter.opts if name.startswith("--"))
    return [
        word
        for each in (value if isinstance(value, list | tuple) else [value])
        for word in (name, str(each))
    ]


def _without_config(words: list[str]) -> Iterator[str]:
    """Yield the words of a command line except --config and its file."""
    rest = iter(words)
    for word in rest:
        if word == "--config":
            next(rest, None)
        elif not word.startswith("--config="):
            yield word
