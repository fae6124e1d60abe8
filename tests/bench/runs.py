"""A long run under fire: 200 scenarios of a tiny model, the child at work killed in every tenth, and this process's memory watched.

    python tests/bench/runs.py [--device cpu]

The kill comes at a random moment of the work. Prints the outcomes, the records on disk, and the resident set after 20 scenarios and at the
end.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from threading import Timer
from typing import Any, cast

import psutil

from profiler.running.child import Job
from profiler.running.runner import Crew, run
from profiler.running.worker import Worker
from profiler.store import RunStore
from scenarios import Scenario
from scenarios.spec import Device

COUNT = 200
TINY = """
import os, time
import torch
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
    def forward(self, x):
        # Long enough to be killed in.
        time.sleep(0.1)
        return self.layer(x).square().mean()
def build():
    return Tiny(), {"x": torch.ones(2, 8)}
"""


class Struck(Worker):
    """A child that is sent SIGKILL some time after it has been given a job that is marked, and before it has ended that."""

    def _line(self, end: float | None) -> bytes:
        if self.marked:
            Timer(moments.uniform(0, 0.1), os.kill, (self.pid, signal.SIGKILL)).start()
        return super()._line(end)

    marked = False

    def ask(self, job: Job, timeout: float | None = None) -> dict[str, Any]:
        self.wait_until_ready()
        self.marked = job.scenario.seed in doomed and job.folder is not None
        return super().ask(job, timeout)


moments = random.Random(0)
doomed = {random.Random(ten).randrange(10) + 10 * ten for ten in range(COUNT // 10)}


def main() -> None:
    """Run, and print what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="sim", choices=["sim", "cpu"])
    device = cast(Device, parser.parse_args().device)
    folder = Path(tempfile.mkdtemp())
    (folder / "tiny_bench.py").write_text(TINY)
    sys.path.append(str(folder))
    asked = [Scenario(model="tiny_bench:build", optimizer="sgd", implementation="loop", device=device, seed=seed) for seed in range(COUNT)]
    resident: dict[int, int] = {}

    def started(place: int, _scenario: Scenario) -> None:
        resident[place] = psutil.Process().memory_info().rss

    begin = time.monotonic()
    with Crew(Struck) as crew:
        run(asked, RunStore.create(folder / "run"), started, crew=crew)
    outcomes = Counter(record.outcome for record in RunStore(folder / "run").read())
    print(f"{dict(outcomes)} on disk of {COUNT} in {time.monotonic() - begin:.0f} s")
    print(f"resident: {resident[20] / 2**20:.1f} MiB after 20, {resident[COUNT - 1] / 2**20:.1f} MiB after {COUNT - 1} scenarios")
    print(f"children left: {len(psutil.Process().children(recursive=True))}")


if __name__ == "__main__":
    main()
