"""Campaign: do everything that needs a GPU, the most valuable first, within a time limit.

    python3 tests/gpu/campaign.py --out FOLDER --seconds 480
    python3 tests/gpu/campaign.py --out FOLDER --seconds 60 --rehearse     without a GPU

It runs from a plain checkout and needs only torch and transformers. The folder then has
journal.jsonl, records.jsonl and recordings-N.jsonl, which absorb.py reads. The traceback of a
failed stage goes into the journal, and the next stage begins.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

START = time.monotonic()
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "src"), str(HERE.parent / "golden")]

import gpu_tests  # noqa: E402
import plan  # noqa: E402
from budget import Budget  # noqa: E402
from children import Children, Job, NoDeviceError  # noqa: E402
from journal import Journal  # noqa: E402

# The weight of each stage, against those after it, in the seconds that are left.
SHARES = {
    "constants": 60,
    "recordings": 115,
    "kernels": 90,
    "settings": 45,
    "harness": 75,
    "tests": 40,
    "steps": 35,
    "other recordings": 20,
}
# Seconds below which no job begins.
LEAST_SECONDS = 2.0


class Campaign:
    """One run: its journal, children and time."""

    def __init__(
        self,
        journal: Journal,
        seconds: float,
        scratch: Path,
        *,
        rehearse: bool = False,
        most: int | None = None,
    ) -> None:
        self.journal = journal
        self.budget = Budget(seconds, SHARES, START)
        self.most = most
        self.children = Children(self.journal, scratch, rehearse=rehearse)

    def say(self, words: str) -> None:
        """Print a line of progress."""
        print(f"{self.budget.elapsed:7.1f} s  {words}", flush=True)

    def load(self) -> None:
        """Load torch before the time of the first stage begins."""
        self.children.probe()
        way = "forks a child for each job" if self.children.forks else "loads torch for each job"
        self.say(f"loaded torch; {way}")

    def stage(self, name: str, run: Callable[["Campaign", float], None]) -> None:
        """Run one stage until its deadline; note any exception."""
        end = self.budget.deadline(name)
        self.say(f"== {name}: {end - time.monotonic():.0f} s")
        self.journal.note("stage", name=name, at=self.budget.elapsed)
        try:
            run(self, end)
        except Exception:
            text = traceback.format_exc()
            self.say(f"{name} failed: {text.strip().splitlines()[-1]}")
            self.journal.note("failed", name=name, traceback=text[-4000:])
        self.journal.note("stage ended", name=name, at=self.budget.elapsed)

    def run_jobs(self, jobs: Iterable[Job], end: float) -> None:
        """Run jobs until the deadline, and note the number of jobs without time."""
        left_out = 0
        for job in islice(jobs, self.most):
            seconds = min(job.limit, end - time.monotonic())
            if seconds < LEAST_SECONDS:
                left_out += 1
                continue
            start = time.monotonic()
            ended = self.children.run(job, seconds)
            self.say(f"{job.name}: {ended}, {time.monotonic() - start:.1f} s")
        if left_out:
            self.say(f"no time for {left_out} more")
            self.journal.note("left out", count=left_out)


def jobs_of(jobs: Callable[[], Iterable[Job]]) -> Callable[[Campaign, float], None]:
    """Return a stage that runs these jobs."""
    return lambda campaign, end: campaign.run_jobs(jobs(), end)


STAGES: dict[str, Callable[[Campaign, float], None]] = {
    "constants": jobs_of(plan.constants),
    "recordings": jobs_of(plan.core_recordings),
    "kernels": jobs_of(plan.kernels),
    "settings": jobs_of(plan.settings),
    "harness": jobs_of(plan.harness),
    "tests": gpu_tests.run,
    "steps": jobs_of(plan.optimizer_steps),
    "other recordings": jobs_of(plan.other_recordings),
}


def main() -> int:
    """Run the stages; return 1 without a device, else 0, even if stages failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="for everything; 480 unless said"
    )
    parser.add_argument(
        "--only", default="", metavar="STAGES", help=f"of {', '.join(SHARES)}, by commas"
    )
    parser.add_argument("--most", type=int, metavar="N", help="jobs of each stage; all unless said")
    parser.add_argument("--rehearse", action="store_true", help="tiny scenarios on a stand-in")
    arguments = parser.parse_args()
    stages = (
        [name.strip() for name in arguments.only.split(",")] if arguments.only else list(STAGES)
    )
    if unknown := set(stages) - set(STAGES):
        parser.error(
            f"no stage is named {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}"
        )
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        journal = Journal(arguments.out)
        journal.note("campaign", seconds=arguments.seconds, rehearsed=arguments.rehearse)
    except OSError as error:
        parser.error(f"nothing can be written to --out {arguments.out}: {error.strerror}")
    with TemporaryDirectory() as scratch:
        campaign = Campaign(
            journal,
            arguments.seconds,
            Path(scratch),
            rehearse=arguments.rehearse,
            most=arguments.most,
        )
        try:
            campaign.load()
            for name, run in STAGES.items():
                if name in stages:
                    campaign.stage(name, run)
        except NoDeviceError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            campaign.children.end()
        campaign.say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
