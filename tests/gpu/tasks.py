"""Tasks: the jobs of a campaign's children, by the journal, a job's name and arguments."""

import base64
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attention
import footprint
import kernel_checks
import kernels
import recurrent
import speeds
import steps
import torch
from journal import Journal
from optprof.profiler.measuring import harness, measurement
from optprof.profiler.measuring.files import Files
from optprof.profiler.running.child import Job, attempt
from optprof.scenarios import Scenario
from place import PLACE
from record import record

WARM_UP_SECONDS, WARM_UP_LIMIT = 0.5, 1.5


@dataclass(frozen=True)
class Say:
    """Notes results one by one, constants unless said, so that a failure loses no earlier one."""

    journal: Journal
    job: str
    kind: str = "constant"

    def __call__(self, name: str, value: Any) -> None:
        """Note one result."""
        self.journal.note(self.kind, job=self.job, name=name, value=value)

    def attempt(self, name: str, find: Callable[..., Any], *arguments: Any) -> None:
        """Note the result of a function, or its traceback."""
        try:
            self(name, find(*arguments))
        except Exception:
            text = traceback.format_exc()[-2000:]
            self.journal.note("failed", name=f"{self.job}, {name}", traceback=text)


def probe(journal: Journal, name: str) -> float:
    """Return the result of a kernel, which shows that this process can use CUDA."""
    del journal, name
    torch.cuda.init()
    return float(torch.ones(2, device=PLACE.device).sum())


def constants(journal: Journal, name: str) -> None:
    """Measure the group of constants with the job's name."""
    GROUPS[name](Say(journal, name))


def kernel_steps(
    journal: Journal, name: str, scenario: dict[str, Any], ways: list[tuple[str, str]]
) -> None:
    """Time the steps of some optimizers alone, on one model."""
    kernels.steps(Say(journal, name, "kernel"), scenario, ways)


def check_kernels(journal: Journal, name: str, specs: list[str], graph: str) -> None:
    """Compare fused steps with the loop's, and a graph's replays with steps."""
    kernel_checks.check(Say(journal, name, "kernel"), specs, graph)


def take_recording(journal: Journal, name: str, scenario: dict[str, Any]) -> dict[str, Any]:
    """Record a scenario; the recording is one line, compressed and in base64."""
    recording = record(PLACE.prepare(Scenario(**scenario)), PLACE.device)
    packed = recording.pack(preset=6)
    journal.append(journal.recordings(), name=name, xz=base64.b64encode(packed).decode())
    statistics = recording.phases[-1].statistics
    peak, reserved = statistics["allocated_bytes.all.peak"], statistics["reserved_bytes.all.peak"]
    return {
        "peak_allocated": peak,
        "peak_reserved": reserved,
        "ran_out": recording.ran_out,
        "bytes": len(packed),
    }


def measure(
    journal: Journal, name: str, scenario: dict[str, Any], seconds: float, trace: bool = False
) -> dict[str, Any]:
    """Measure a scenario as `optprof profile` does, in less time, and keep the record."""
    del name
    # The harness's own limits are for a run of minutes.
    measurement.TIME_LIMIT = seconds
    harness.WARM_UP_SECONDS, harness.WARM_UP_LIMIT = WARM_UP_SECONDS, WARM_UP_LIMIT
    prepared = PLACE.prepare(Scenario(**scenario))
    with TemporaryDirectory() as folder:
        files = Files(trace=Path(folder)) if trace else Files()
        measured, _ = attempt(Job(scenario=prepared, force=True), files)
    journal.append("records.jsonl", **measured.to_dict())
    step = (measured.times or {}).get("step", ())
    memory = measured.memory
    return {
        "outcome": measured.outcome,
        "error": measured.error,
        "samples": len(step),
        "step": sorted(step)[len(step) // 2] if step else None,
        "peak_allocated": memory.peak_allocated if memory else None,
    }


GROUPS: dict[str, Callable[[Say], None]] = {
    "device": footprint.device,
    "context": footprint.context,
    "workspaces": footprint.workspaces,
    "reductions": footprint.reductions,
    "temporaries": footprint.temporaries,
    "attention": attention.table,
    "recurrent": recurrent.table,
    "bandwidth": speeds.bandwidth,
    "launches": speeds.launches,
    "small-steps": steps.small_steps,
}
TASKS: dict[str, Callable[..., Any]] = {
    "probe": probe,
    "constants": constants,
    "record": take_recording,
    "measure": measure,
    "kernel-steps": kernel_steps,
    "kernel-check": check_kernels,
}
