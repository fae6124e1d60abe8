"""`python -m optprof`."""

import sys

if not sys.flags.safe_path:
    # `python -m` puts the current folder first; its files are not ours to run.
    sys.path.pop(0)

from .cli import main

main()
