"""The commands' table, and their border: one line for an error, and an exit status."""

import errno
import json
import platform
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from importlib.metadata import PackageNotFoundError, version
from inspect import Signature
from typing import Annotated, Any
from warnings import catch_warnings

import typer

from optprof.reports.streams import STDOUT, guard_streams
from optprof.scenarios.schema import shortened

from .compare import compare
from .doctor import doctor
from .explain import explain
from .fit import fit
from .help import Command, Group
from .history import history
from .listing import list_names
from .options import arguments_of, check_early, parameters_of
from .profile import profile
from .repair import repair
from .report import report
from .running import INTERRUPTED
from .snapshot import snapshot
from .sweep import sweep

BROKEN = 1
REFUSED = 2

# What typer raises for arguments that it cannot read.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    cls=Group,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Show the versions of optprof, Python and torch."),
    ] = False,
) -> None:
    """Measure the cost of an optimizer: bytes of its state, peak memory, time of its step."""
    if version:
        print(_versions())
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _versions() -> str:
    names = {"optprof": _version("optprof"), "Python": platform.python_version()}
    return ", ".join(
        f"{name} {each}" for name, each in (names | {"torch": _version("torch")}).items()
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _add(
    function: Callable[..., None],
    panel: str,
    name: str | None = None,
    without: Collection[str] = (),
) -> None:
    """Add a command whose exceptions become one line, and which has the option --traceback."""
    parameters = parameters_of(function, without)

    @wraps(function)
    def run(**values: Any) -> None:
        with _border(values):
            check_early(values)
            function(**arguments_of(function, values))

    run.__signature__ = Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(name, cls=Command, rich_help_panel=panel)(run)


@contextmanager
def _border(values: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a command with these options raises into one line and a status."""
    as_json = values.get("as_json", False)
    try:
        with catch_warnings():
            warnings.showwarning = partial(_show_warning, set())
            yield
    except GeneratorExit:
        raise
    except typer.Exit as end:
        if as_json and end.exit_code == INTERRUPTED:
            _print_json("interrupted", INTERRUPTED)
        raise
    except KeyboardInterrupt:
        _refuse("interrupted", INTERRUPTED, as_json=as_json)
        raise typer.Exit(INTERRUPTED) from None
    except BaseException as error:
        if values["traceback"]:
            traceback.print_exc()
        message, status = _message_and_status(error, values)
        _refuse(message, status, as_json=as_json)
        raise typer.Exit(status) from None


def _refuse(message: str, status: int, *, as_json: bool) -> None:
    """Print one line on stderr; with --json, print an object on stdout too."""
    line = shortened(" ".join(message.splitlines()), 2_000)
    print(f"optprof: {line}", file=sys.stderr)
    if as_json:
        _print_json(line, status)


def _print_json(error: str, status: int) -> None:
    print(json.dumps({"error": error, "status": status}, indent=1))


def _show_warning(
    shown: set[str],
    message: Warning | str,
    category: type[Warning],
    file: str,
    line: int,
    *_: object,
) -> None:
    """Print our own warnings line by line, each line once, and others as Python does."""
    if not category.__module__.startswith("optprof."):
        sys.stderr.write(warnings.formatwarning(message, category, file, line))
        return
    for text in str(message).splitlines():
        if text not in shown:
            print(text, file=sys.stderr)
            shown.add(text)


def _message_and_status(error: BaseException, options: Collection[str]) -> tuple[str, int]:
    from optprof.profiler.machine.doctor import installed_by
    from optprof.profiler.records.outcome import is_ours, one_line, user_line

    missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0]
    if missing and (advice := installed_by(missing)):
        return f"{missing} is not installed; {advice}", REFUSED
    if is_ours(error) and isinstance(error, Exception):
        return _message(error, options), REFUSED
    if user_line(error):
        return f"{one_line(error)}; --traceback shows the whole", REFUSED
    fault = "this is a fault of optprof; please report it with what --traceback prints"
    return f"{one_line(error)}: {fault}", BROKEN


def _message(error: Exception, options: Collection[str] = ()) -> str:
    """Return the words of an error; an error of the system's names the file and what helps."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    advice = "" if error.filename == STDOUT else _advice(error, options)
    return f"{error.filename}: {error.strerror}{advice}"


def _advice(error: OSError, options: Collection[str]) -> str:
    """Return what helps a command with these options where it cannot write."""
    if error.errno == errno.ENOSPC:
        again = "go on with --resume" if "resume" in options else "try again"
        return f"; make room, and {again}"
    if error.errno == errno.EROFS and "out" in options:
        return "; name another folder with --out"
    is_run = error.errno == errno.EROFS and "run" in options
    return "; copy the run to a folder that can be written" if is_run else ""


_add(profile, "Measure and simulate")
_add(fit, "Measure and simulate", without=("accumulate", "device", "steps", "workload"))
_add(sweep, "Measure and simulate")
_add(snapshot, "Measure and simulate")
_add(report, "Show runs")
_add(compare, "Show runs")
_add(history, "Show runs")
_add(repair, "Show runs")
_add(list_names, "Look up", "list")
_add(explain, "Look up")
_add(doctor, "Look up")


def main() -> None:
    """Run the command that the arguments name."""
    # `python -c` puts the current folder into sys.path as an empty text.
    sys.path[:] = [place for place in sys.path if place]
    guard_streams()
    status = 0
    try:
        try:
            status = app(prog_name="optprof", standalone_mode=False)
        except (_UsageError, ValueError) as error:
            # Arguments and standing options that cannot be read.
            status = REFUSED
            _refuse(_usage(error), REFUSED, as_json="--json" in sys.argv)
        finally:
            # What waits in the buffer may meet a full disk.
            sys.stdout.flush()
    except OSError as error:
        status = REFUSED
        as_json = "--json" in sys.argv and error.filename != STDOUT
        _refuse(_message(error), REFUSED, as_json=as_json)
    sys.exit(status or 0)


def _usage(error: Any) -> str:
    """Return one line for arguments that cannot be read, and the command that lists the right."""
    if not isinstance(error, _UsageError):
        return str(error)
    command = error.ctx.command_path if error.ctx else "optprof"
    parameter = getattr(error, "param", None)
    if type(error) is typer.BadParameter and parameter is not None:
        return f"{max(parameter.opts, key=len)} {error.message}"
    words = error.format_message().rstrip(".").replace("'", "")
    words = words.replace(". Did you", "; did you").replace(" (Possible options:", "; did you mean")
    words = f"{words.rstrip(')')}?" if words.endswith(")") else words
    end = "" if words.endswith("?") else ";"
    return f"{words[:1].lower()}{words[1:]}{end} {command} --help shows what it takes"
