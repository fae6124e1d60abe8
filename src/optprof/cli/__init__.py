"""The command line. Importing it loads nothing; `main` first leaves out the current folder."""

import os
import sys


def main() -> None:
    """Run the command that the arguments name."""
    _leave_current_folder_out()
    try:
        from .app import main

        main()
    except KeyboardInterrupt:
        # Modules take a third of a second to load, before any command can catch this.
        print("optprof: interrupted", file=sys.stderr)
        sys.exit(130)


def _leave_current_folder_out() -> None:
    """Remove relative entries of PYTHONPATH from `sys.path`.

    They lie in the current folder, and a command runs no file of it unasked.
    """
    ours = os.path.abspath(f"{__file__}/../../..")  # noqa: PTH100
    for entry in (os.environ.get("PYTHONPATH") or os.sep).split(os.pathsep):
        place = os.path.abspath(entry)  # noqa: PTH100
        if not os.path.isabs(entry) and place != ours:  # noqa: PTH117
            sys.path[:] = [other for other in sys.path if other != place]
