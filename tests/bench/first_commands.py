"""Time the commands that a user types first, each in a new process, against its target.

    python tests/bench/first_commands.py [--only NAME ...] [--times 1]

The targets are seconds on two quiet cores. Shown are the best of `--times` calls and the seconds of
all their processors, which other load on the machine disturbs less.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Name, arguments, exit status and most seconds; OUT stands for a new folder.
COMMANDS: tuple[tuple[str, str, int, float], ...] = (
    ("help", "--help", 0, 0.5),
    ("wrong model", "profile gpt3 -d sim", 2, 0.5),
    ("wrong optimizer", "profile gpt2 -o adamww", 2, 0.5),
    ("wrong GPU", "fit gpt2 --gpu a101", 2, 0.5),
    ("tiny", "profile tiny --out OUT", 0, 12),
    ("gpt2 -d sim", "profile gpt2 -d sim --out OUT", 0, 6),
    ("gpt2-xl", "profile gpt2-xl -d sim -o adamw,sgd-sai,sm3,lamb16 --out OUT", 0, 15),
    ("report of 24", "report OUT", 0, 2),
    ("fit gpt2", "fit gpt2 --out OUT", 0, 8),
)
# Its 24 records are those of the report.
_TWENTY_FOUR = "profile gpt2 -d sim -o adamw,sm3,lamb16,sgd-sai,sgd,rmsprop --no-report --out OUT"


def run(arguments: str, out: Path, expected: int) -> tuple[float, float]:
    """Run a command; return its seconds, and the seconds of the processors that it used."""
    words = [sys.executable, "-P", "-m", "optprof", *arguments.replace("OUT", str(out)).split()]
    start, before = time.monotonic(), os.times()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - start, os.times()
    if done.returncode != expected:
        raise SystemExit(f"{arguments} ended with {done.returncode}:\n{done.stderr}")
    user, system = (
        after.children_user - before.children_user,
        after.children_system - before.children_system,
    )
    return seconds, user + system


def main() -> None:
    """Print a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [name for name, *_ in COMMANDS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--times", type=int, default=1)
    options = parser.parse_args()
    print(f"{'command':16} {'seconds':>8} {'target':>7} {'processors':>11}")
    for name, arguments, expected, target in COMMANDS:
        if name not in options.only:
            continue
        rows = []
        for _ in range(options.times):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                if name.startswith("report"):
                    run(_TWENTY_FOUR, out, 0)
                rows.append(run(arguments, out, expected))
        seconds, processors = min(rows)
        mark = "" if seconds < target else "  missed"
        print(f"{name:16} {seconds:8.2f} {target:7.1f} {processors:11.2f}{mark}", flush=True)


if __name__ == "__main__":
    main()
