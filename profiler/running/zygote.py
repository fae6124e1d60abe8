"""Zygote: a process that has loaded torch, runs no user code, and forks a process per scenario.

Standard input brings one `Job` per line, a dictionary as a Python literal. Standard output answers
each with a line of JSON: a record, or {"status": ...} if the job's process ended without one.
Simulations of one model share a process that traces the model and is forked for each optimizer.
All printed output goes to standard error, a pipe that the parent empties.

If a fork is not safe, this process does one job itself and ends.
"""

import ctypes
import gc
import json
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Event, Thread

from optprof.scenarios import Scenario

from ..machine import environment
from .child import Job, do
from .forks import MOST_ANSWER_BYTES, Fork, Inbox, flush, fork, read_answer, send, to_line, write
from .processes import ON_LINUX, adopt_orphans, end_descendants
from .traced_models import ModelFork, model_key

# The parent sends this to end the job under way.
END = b"end\n"
# Modules that take seconds to load; the first optimizer would load torch._dynamo.
_LOADED = (
    "torch",
    "torch._dynamo",
    "optprof.profiler.measuring.measurement",
    "optprof.profiler.simulating.simulation",
)
# Processes with a traced model to keep for its next optimizer.
_MOST_MODELS = 2
_POLL_SECONDS = 0.25


def main(models: Sequence[str] = ()) -> None:
    """Load torch and these models' code, report it, and work until the parent ends or hangs up."""
    parent = os.getppid()
    # If a caller ignores SIGCHLD, which is inherited, the kernel keeps no child's status.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    jobs, answers = _own_pipes()
    with _ending_with(parent):
        # Loading makes no garbage, and each search for it takes a tenth of the time.
        gc.disable()
        for module in _LOADED:
            import_module(module)
        for model in models:
            # The parent reports a name that is no model.
            with suppress(ValueError):
                _load_code(Scenario(model=model))
    adopt_orphans()
    try:
        forks = _can_fork()
        if forks:
            _learn_machine()
        gc.freeze()
        gc.enable()
        send(answers, {"ready": os.getpid()})
        _Zygote(jobs, answers, parent).serve() if forks else _work_alone(jobs, answers, parent)
    finally:
        end_descendants()
        flush()
        os._exit(0)


def _own_pipes() -> tuple[int, int]:
    """Return standard input and output under new numbers, which no user code uses.

    In their place are an empty input and standard error. Output is flushed by line, so that a line
    is kept, in order with those printed from C, however the process ends.
    """
    jobs, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    if ON_LINUX:
        library = ctypes.CDLL(None)
        # _IOLBF of stdio.h, by lines.
        library.setvbuf(ctypes.c_void_p.in_dll(library, "stdout"), None, 1, 0)
    return jobs, answers


@contextmanager
def _ending_with(parent: int) -> Iterator[None]:
    """End this process if its parent ends during the code inside; a thread watches for that.

    Afterwards the thread is gone, because a fork would not be safe.
    """
    done = Event()

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            if os.getppid() != parent:
                os._exit(1)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _can_fork() -> bool:
    """Return whether a fork can do everything that a fresh process can.

    Without NVML, torch starts CUDA to count its devices, and then no fork can use CUDA.
    """
    if not ON_LINUX:
        return False
    import torch

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return not torch.cuda.is_initialized() and torch.cuda._device_count_nvml() >= 0


def _learn_machine() -> None:
    """Look up in a fork the facts of this machine for all records: a GPU's name starts CUDA."""
    reader, writer = os.pipe()
    pid = fork(lambda: send(writer, environment.fixed()))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        facts = pipe.read()
    os.waitpid(pid, 0)
    if facts:
        environment.know(json.loads(facts))


def _load_code(scenario: Scenario) -> None:
    """Load the code that each fork for a catalogue's model needs; a failure is reported there."""
    from optprof.scenarios.workpiece import load_code

    with suppress(Exception):
        load_code(scenario)


class _Zygote:
    """Takes jobs from the parent, one after another, and runs each in a process of its own."""

    def __init__(self, jobs: int, answers: int, parent: int) -> None:
        self._jobs = Inbox(jobs)
        self._answers = answers
        self._parent = parent
        self._models: dict[Scenario, ModelFork] = {}

    def serve(self) -> None:
        """Work until the parent closes the pipe or ends."""
        with suppress(EOFError):
            while True:
                line = self._next()
                # An END that comes too late for its job ends nothing.
                if line != END:
                    write(self._answers, self._done(Job.from_line(line)))

    def _next(self) -> bytes:
        while (line := self._jobs.line()) is None:
            self._wait(self._jobs.descriptor)
        return line

    def _wait(self, *sources: int) -> list[int]:
        """Return the readable sources, after a short wait; raise EOFError if the parent is gone."""
        ready, _, _ = select.select([self._jobs.descriptor, *sources], [], [], _POLL_SECONDS)
        if self._jobs.descriptor in ready:
            self._jobs.read()
        if self._jobs.closed or os.getppid() != self._parent:
            raise EOFError
        return ready

    def _done(self, job: Job) -> bytes:
        """Return the line that answers a job, and end all its processes except a traced model."""
        _load_code(job.scenario)
        gc.freeze()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        task = self._start(job, reader, writer)
        os.close(writer)
        try:
            return self._answer_of(task, reader)
        except EOFError:
            # No caller waits for its answer any longer.
            task.end()
            raise
        finally:
            os.close(reader)
            self._clear(task)

    def _start(self, job: Job, reader: int, writer: int) -> Fork:
        def leave() -> None:
            for descriptor in (self._jobs.descriptor, self._answers, reader):
                os.close(descriptor)

        def alone() -> None:
            leave()
            do(job, writer)

        key = None if job.together else model_key(job.scenario)
        if key is None:
            return Fork(alone)
        if key not in self._models:
            while len(self._models) >= _MOST_MODELS:
                self._models.pop(next(iter(self._models))).end()
            self._models[key] = ModelFork(leave)
        # The least recently used goes first.
        model = self._models[key] = self._models.pop(key)
        model.give(job, writer)
        return model

    def _answer_of(self, task: Fork, reader: int) -> bytes:
        answer, is_open = bytearray(), True
        while True:
            ready = self._wait(*([reader] if is_open else []), *task.sources)
            # Before the pipe is read: then it has all that an ended process wrote.
            status = task.poll()
            if reader in ready or status is not None:
                is_open = read_answer(reader, answer)
            if b"\n" in answer:
                return bytes(answer.partition(b"\n")[0]) + b"\n"
            if len(answer) > MOST_ANSWER_BYTES:
                return to_line(
                    {"refused": f"the process answered more than {MOST_ANSWER_BYTES} bytes"}
                )
            if status is not None:
                return to_line({"status": status})
            if self._jobs.line() == END:
                task.end()
                return to_line({"status": -signal.SIGKILL})

    def _clear(self, task: Fork) -> None:
        """End all processes that the job started."""
        if not isinstance(task, ModelFork):
            task.end()
        end_descendants(*(model.pid for model in self._models.values() if model.status is None))
        if isinstance(task, ModelFork):
            task.settle()
            self._models = {
                key: model for key, model in self._models.items() if model.status is None
            }


def _work_alone(jobs: int, answers: int, parent: int) -> None:
    """Do one job in this process; it ends with its parent, and with all that it started."""
    inbox = Inbox(jobs)
    while (line := inbox.line()) is None:
        inbox.read()
        if inbox.closed:
            return

    def watch() -> None:
        while os.getppid() == parent and not inbox.closed:
            if select.select([jobs], [], [], _POLL_SECONDS)[0]:
                inbox.read()
        os.killpg(0, signal.SIGKILL)

    Thread(target=watch, daemon=True).start()
    do(Job.from_line(line), answers)
