"""Run the tests marked `gpu` in a separate pytest."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaign import Campaign

ROOT = Path(__file__).resolve().parent.parent.parent
TAIL = 20_000
# A line of the summary: "FAILED tests/a.py::test_b - words".
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED)\b.*", re.MULTILINE)


def run(campaign: "Campaign", end: float) -> None:
    """Run them until the deadline and note the end of pytest's output.

    Warnings are not errors here: they can wait.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-rA",
        "-q",
        "--no-header",
        "--tb=short",
    ]
    command += ["-p", "no:cacheprovider", "-W", "default", "--durations=5"]
    command += [str(path.relative_to(ROOT)) for path in marked()[: campaign.most]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=max(1.0, end - time.monotonic()),
            check=False,
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output, status = error.stdout or b"", None
    text = output.decode(errors="replace")
    outcomes = [line.group() for line in _OUTCOME.finditer(text)]
    last = text.strip().splitlines()[-1:] or ["nothing"]
    campaign.say(f"pytest: status {status}, {last[0]}")
    campaign.journal.note("tests", status=status, outcomes=outcomes, output=text[-TAIL:])


def marked() -> list[Path]:
    """Return the files that have tests marked `gpu`."""
    files = sorted((ROOT / "tests").glob("*/test_*.py")) + sorted(
        (ROOT / "tests").glob("test_*.py")
    )
    return [path for path in files if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]
