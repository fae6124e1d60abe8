"""Run 200 scenarios of a tiny model and kill the working process in every tenth.

    python tests/bench/runs.py [--device cpu]

The kill comes at a random moment of the work. Prints the outcomes, the records on disk, and this
process's resident memory after 20 scenarios and at the end.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import cast

import psutil

from optprof.profiler.records.store import RunStore
from optprof.profiler.running.runner import run
from optprof.profiler.running.worker import Worker
from optprof.scenarios import Scenario
from optprof.scenarios.spec import Device

COUNT = 200
TINY = """
import os, time
import torch
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
    def forward(self, x):
        # Long enough to be killed meanwhile.
        time.sleep(0.1)
        return self.layer(x).square().mean()
def build():
    return Tiny(), {"x": torch.ones(2, 8)}
"""


def strike(zygote: int) -> None:
    """Send SIGKILL to the process that works for the zygote: its newest descendant."""
    with suppress(psutil.NoSuchProcess, IndexError):
        at_work = max(
            psutil.Process(zygote).children(recursive=True), key=psutil.Process.create_time
        )
        os.kill(at_work.pid, signal.SIGKILL)


moments = random.Random(0)
doomed = {random.Random(ten).randrange(10) + 10 * ten for ten in range(COUNT // 10)}


def main() -> None:
    """Run the scenarios, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="sim", choices=["sim", "cpu"])
    device = cast(Device, parser.parse_args().device)
    folder = Path(tempfile.mkdtemp())
    (folder / "tiny_bench.py").write_text(TINY)
    sys.path.append(str(folder))
    scenarios = [
        Scenario(
            model="tiny_bench:build",
            optimizer="sgd",
            implementation="loop",
            device=device,
            seed=seed,
        )
        for seed in range(COUNT)
    ]
    resident: dict[int, int] = {}

    worker = Worker()

    def started(number: int, scenario: Scenario) -> None:
        resident[number] = psutil.Process().memory_info().rss
        if scenario.seed in doomed:
            Timer(moments.uniform(0, 0.1), strike, (worker.pid,)).start()

    begin = time.monotonic()
    with worker:
        run(scenarios, RunStore.create(folder / "run"), started, worker=worker)
    outcomes = Counter(record.outcome for record in RunStore(folder / "run").read())
    print(f"{dict(outcomes)} on disk of {COUNT} in {time.monotonic() - begin:.0f} s")
    print(
        f"resident: {resident[20] / 2**20:.1f} MiB after 20, {resident[COUNT - 1] / 2**20:.1f} MiB"
        f" after {COUNT - 1} scenarios"
    )
    print(f"children left: {len(psutil.Process().children(recursive=True))}")


if __name__ == "__main__":
    main()
