"""Attack optprof, and count lost records, executed code and wrong results.

    python tests/bench/reliability.py [NAME ...] [--seed 0] [--scale 1]

NAMEs are signals, disks, runs, timelines, snapshots, strings, models and optimizers; without one,
all of them run. `--scale` multiplies the number of attempts. Prints a table in Markdown, as
docs/reliability.md has it, and ends with status 1 after any fault.
"""

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable

from attacks import disks, hostile, models, mutations, optimizers, signals, snapshots
from attacks.row import Row

ATTACKS: dict[str, tuple[Callable[[random.Random, int], Row], int]] = {
    "signals": (signals.run, signals.COUNT),
    "disks": (disks.run, disks.COUNT),
    "runs": (mutations.run, mutations.COUNT),
    "timelines": (mutations.run_timelines, mutations.TIMELINES),
    "snapshots": (snapshots.run, snapshots.COUNT),
    "strings": (hostile.run, hostile.COUNT),
    "models": (models.run, models.COUNT),
    "optimizers": (optimizers.run, optimizers.COUNT),
}


def main() -> int:
    """Run some attacks, or all; print the table, and return 1 after any fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="attacks; all without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    if unknown := set(options.names) - set(ATTACKS):
        parser.error(f"no attack is named {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    warnings.simplefilter("ignore")
    rows = []
    for name in options.names or ATTACKS:
        attack, count = ATTACKS[name]
        begin = time.monotonic()
        row = attack(random.Random(f"{name} {options.seed}"), max(1, round(count * options.scale)))
        print(
            f"{name}: {row.tried} in {time.monotonic() - begin:.0f} s",
            *row.descriptions,
            sep="\n  ",
        )
        rows.append(row)
        sys.stdout.flush()
    print("\n| tried | how often | of which | at fault |\n|---|---:|---|---|")
    print(*(row.markdown() for row in rows), sep="\n")
    return int(any(row.faults.total() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
