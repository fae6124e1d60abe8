"""The commands' table, and their border: one line for an error, and an exit status."""

import errno
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from inspect import Signature
from typing import Any
from warnings import catch_warnings

import typer

from optprof.reports.streams import STDOUT, guard_streams
from optprof.scenarios.schema import shortened

from .compare import compare
from .doctor import doctor
from .explain import explain
from .fit import fit
from .history import history
from .listing import list_names
from .options import arguments_of, parameters_of
from .profile import profile
from .repair import repair
from .report import report
from .running import INTERRUPTED
from .sweep import sweep

BROKEN = 1
REFUSED = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "What an optimizer costs: the bytes of its state, the peak it leads to, the time of its"
        " step."
    ),
)


def _add(
    function: Callable[..., None], name: str | None = None, without: Collection[str] = ()
) -> None:
    """Add a command whose exceptions become one line, and which has the option --traceback."""
    parameters = parameters_of(function, without)

    @wraps(function)
    def run(**values: Any) -> None:
        with _border(whole=values["traceback"]):
            function(**arguments_of(function, values))

    run.__signature__ = Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(name)(run)


@contextmanager
def _border(*, whole: bool) -> Iterator[None]:
    """Turn what a command raises into one line and a status; `whole` prints the traceback first."""
    try:
        with catch_warnings():
            warnings.showwarning = partial(_show_warning, set())
            yield
    except (typer.Exit, GeneratorExit):
        raise
    except KeyboardInterrupt:
        print("optprof: interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except BaseException as error:
        if whole:
            traceback.print_exc()
        message, status = _message_and_status(error)
        print(f"optprof: {shortened(' '.join(message.splitlines()), 2_000)}", file=sys.stderr)
        raise typer.Exit(status) from None


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


def _message_and_status(error: BaseException) -> tuple[str, int]:
    from optprof.profiler.machine.doctor import installed_by
    from optprof.profiler.records.outcome import is_ours, one_line, user_line

    missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0]
    if missing and (advice := installed_by(missing)):
        return f"{missing} is not installed; {advice}", REFUSED
    if is_ours(error) and isinstance(error, Exception):
        return _message(error), REFUSED
    if user_line(error):
        return f"{one_line(error)}; --traceback shows the whole", REFUSED
    fault = "this is a fault of optprof; please report it with what --traceback prints"
    return f"{one_line(error)}: {fault}", BROKEN


def _message(error: Exception) -> str:
    """Return the words of an error; an error of the system's names the file and what helps."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    helps = {
        errno.EROFS: "; name another folder with --out",
        errno.ENOSPC: "; make room, and go on with --resume",
    }
    advice = "" if error.filename == STDOUT else helps.get(error.errno or 0, "")
    return f"{error.filename}: {error.strerror}{advice}"


_add(profile)
_add(sweep)
_add(doctor)
_add(fit, without=("accumulate", "device", "steps", "workload"))
_add(report)
_add(repair)
_add(compare)
_add(history)
_add(explain)
_add(list_names, "list")


def main() -> None:
    """Run the command that the arguments name."""
    # `python -c` puts the current folder into sys.path as an empty text.
    sys.path[:] = [place for place in sys.path if place]
    guard_streams()
    try:
        try:
            app()
        finally:
            # What waits in the buffer may meet a full disk.
            sys.stdout.flush()
    except OSError as error:
        print(f"optprof: {_message(error)}", file=sys.stderr)
        sys.exit(REFUSED)
