"""Zygote: a process that has loaded torch, runs no user code, and forks a process per scenario.

Standard input is a socket, which brings a `Task` for each job. Each job has a guard, which answers
with a line of JSON: a record, or {"status": ...} if the job's process ended without one. Any number
of jobs may run at once. Simulations of one model share a process that traces the model and forks
the guards of its optimizers.

If a fork is not safe, this process does one job itself and ends.
"""

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import chain
from threading import Event, Thread

from optprof.scenarios import Scenario

from ..machine import environment
from .child import do
from .forks import flush, fork, print_into, send, to_line, write
from .guards import POLL_SECONDS, Guards, Task
from .processes import ON_LINUX, adopt_orphans, end_descendants
from .traced_models import ModelFork, model_key

# What is reported once torch is loaded: any number of jobs, or one.
FORKS, ALONE = b"+", b"1"
# Modules that take seconds to load; the first optimizer would load torch._dynamo.
_LOADED = (
    "torch",
    "torch._dynamo",
    "optprof.profiler.measuring.measurement",
    "optprof.profiler.simulating.simulation",
)
# Processes with a traced model to keep for its next optimizer.
_MOST_MODELS = 2


def main(models: Sequence[str] = ()) -> None:
    """Load torch and these models' code, report it, and work until the parent ends or hangs up."""
    parent = os.getppid()
    # If a caller ignores SIGCHLD, which is inherited, the kernel keeps no child's status.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control = _own_streams()
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
        flush()
        control.sendall(FORKS if forks else ALONE)
        _Zygote(control, parent).serve() if forks else _work_alone(control, parent)
    finally:
        end_descendants()
        flush()
        os._exit(0)


def _own_streams() -> socket.socket:
    """Return standard input as a socket under a new number, which no user code uses.

    In its place is an empty input, and standard output is standard error. Output is flushed by
    line, so that a line is kept, in order with those printed from C, however the process ends.
    """
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    if ON_LINUX:
        library = ctypes.CDLL(None)
        # _IOLBF of stdio.h, by lines.
        library.setvbuf(ctypes.c_void_p.in_dll(library, "stdout"), None, 1, 0)
    return control


@contextmanager
def _ending_with(parent: int) -> Iterator[None]:
    """End this process if its parent ends during the code inside; a thread watches for that.

    Afterwards the thread is gone, because a fork would not be safe.
    """
    done = Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
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
    """Takes jobs from the parent and runs each in processes of its own."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._control = control
        self._parent = parent
        self._guards = Guards()
        self._models: dict[Scenario, ModelFork] = {}
        self._retired: list[ModelFork] = []
        # Tasks to start: new ones, and those that waited for a model whose process has ended.
        self._tasks: deque[Task] = deque()

    def serve(self) -> None:
        """Work until the parent closes the socket or ends."""
        while os.getppid() == self._parent:
            models = self._models.values()
            tracing = [each.waiting[0].channel for each in models if each.waiting]
            sources = [self._control, *(each.control for each in models), *tracing]
            ready, _, _ = select.select(sources, [], [], POLL_SECONDS)
            if self._control in ready:
                task = Task.take(self._control)
                if task is None:
                    return
                self._tasks.append(task)
            self._look()
            while self._tasks:
                self._start(self._tasks.popleft())

    def _start(self, task: Task) -> None:
        os.dup2(task.output, 1)
        os.dup2(task.output, 2)
        _load_code(task.job.scenario)
        gc.freeze()
        key = None if task.job.together else model_key(task.job.scenario)
        if key is None:
            os.close(task.output)
            self._guards.start(task, self._leave)
            return
        if key not in self._models:

            def leave() -> None:
                self._leave()
                task.close()

            self._retire()
            self._models[key] = ModelFork(leave)
        # The least recently used goes first.
        model = self._models[key] = self._models.pop(key)
        model.give(task)

    def _leave(self) -> None:
        """Close, in a fork, what belongs to the zygote and to other jobs."""
        self._control.close()
        models = self._models.values()
        for model in models:
            model.control.close()
        for task in chain(self._tasks, *(model.waiting for model in models)):
            task.close()

    def _retire(self) -> None:
        """Let go of models until there is space for another; one that still traces stays."""
        idle = [key for key, model in self._models.items() if not model.waiting]
        for key in idle[: max(0, len(self._models) - _MOST_MODELS + 1)]:
            model = self._models.pop(key)
            model.retire()
            self._retired.append(model)

    def _look(self) -> None:
        """Answer for models that have ended, start again what waited for them, and clean up."""
        ended: list[ModelFork] = []
        for key, model in list(self._models.items()):
            model.look()
            if model.poll() is not None:
                ended.append(self._models.pop(key))
        is_left = self._guards.were_killed() or bool(ended)
        is_left |= any(model.poll() for model in self._retired)
        self._retired = [model for model in self._retired if model.status is None]
        if is_left:
            forks = (*self._models.values(), *self._retired)
            end_descendants(*self._guards.pids, *(each.pid for each in forks))
        for model in ended:
            model.control.close()
            if model.waiting:
                first = model.waiting.popleft()
                # It may have answered, and its asker be gone.
                with suppress(OSError):
                    write(first.channel.fileno(), to_line({"status": model.status}))
                first.close()
            self._tasks += model.waiting


def _work_alone(control: socket.socket, parent: int) -> None:
    """Do one job in this process; it ends with its parent, and with all that it started."""
    task = Task.take(control)
    if task is None:
        return
    print_into(task.output)

    def watch() -> None:
        while os.getppid() == parent and not task.is_given_up:
            time.sleep(POLL_SECONDS)
        os.killpg(0, signal.SIGKILL)

    Thread(target=watch, daemon=True).start()
    do(task.job, task.channel.fileno())
