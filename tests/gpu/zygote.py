"""Zygote: loads torch and transformers, never starts CUDA, and forks a child for each job.

children.py starts it. Standard input brings one job per line, as JSON. Standard output answers with
the child's process id and, when it has ended, with its status. With --alone this process runs the
first job: on some machines a fork cannot use CUDA.
"""

import argparse
import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent / "src"), str(HERE.parent / "golden")]

from journal import Journal  # noqa: E402

# Modules that a child needs; each takes a second or more to load.
LOADED = (
    "torch",
    "torch._dynamo",
    "transformers",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "llama", "vit", "resnet")),
    "tasks",
)
_PR_SET_PDEATHSIG = 1
# The status of a job whose record has no result.
NO_RESULT = 2


def main() -> int:
    """Load the modules, report it, and work until the parent closes the pipe or ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--alone", action="store_true")
    arguments = parser.parse_args()
    _die_with_parent()
    start = time.monotonic()
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for module in LOADED:
        import_module(module)
    if arguments.rehearse:
        import_module("stand_in").install()
    gc.freeze()
    _answer(answers, {"ready": os.getpid(), "seconds": time.monotonic() - start, **_health()})
    journal = Journal(arguments.folder)
    for line in jobs:
        job = json.loads(line)
        if arguments.alone:
            _answer(answers, {"pid": os.getpid()})
            _answer(answers, {"status": work(job, journal)})
            return 0
        _answer(answers, _forked(job, journal, answers))
    return 0


def _forked(job: dict[str, Any], journal: Journal, answers: Any) -> dict[str, int]:
    """Run the job in a child and return its status, minus the signal if one ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            _die_with_parent()
            status = work(job, journal)
        finally:
            # Without the zygote's own cleanup.
            os._exit(status)
    _answer(answers, {"pid": pid})
    return {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def work(job: dict[str, Any], journal: Journal) -> int:
    """Run the job in this process, note its result or failure, and return a status."""
    import tasks

    _print_to(job["log"])
    try:
        result = tasks.TASKS[job["task"]](journal, job["name"], **job["arguments"])
        journal.note("done", name=job["name"], found=result)
    except BaseException:
        traceback.print_exc()
        journal.note("failed", name=job["name"], traceback=traceback.format_exc()[-4000:])
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    ok = not isinstance(result, dict) or result.get("outcome", "ok") == "ok"
    return 0 if ok else NO_RESULT


def _print_to(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _answer(answers: Any, data: dict[str, Any]) -> None:
    answers.write(json.dumps(data).encode() + b"\n")


def _health() -> dict[str, Any]:
    """Return the facts that make a fork unsafe: further threads, or CUDA in use."""
    import torch

    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    return {"threads": threads, "cuda": torch.cuda.is_initialized()}


def _die_with_parent() -> None:
    """Let the kernel end this process with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
