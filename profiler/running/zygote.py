"""Zygote: has loaded torch, runs nobody's code, and forks a fresh process for each scenario.

Standard input brings a `Job` a line, a dictionary as a Python literal. Standard output takes a line
of JSON for each: the answer, or {"status": ...} of a process that ended without one. Simulations of
one model have a process in between, which traces the model and is forked for each optimizer.
Everything that is printed goes to standard error, a pipe that the parent empties.

Where a fork is not safe, this process does one job itself and ends.
"""

import ctypes
import gc
import json
import os
import re
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from threading import Event, Thread
from typing import Any

from optprof.scenarios import Scenario

from ..machine import environment
from .child import Job, answer, trace_ahead, work
from .processes import ON_LINUX, adopt_orphans, end_descendants, end_with, thread_count

# What the parent sends to end the job that is under way.
END = b"end\n"
MOST_ANSWER_BYTES = 16 << 20
# What takes seconds to load; torch._dynamo is what the first optimizer would load.
_LOADED = (
    "torch",
    "torch._dynamo",
    "optprof.profiler.measuring.measurement",
    "optprof.profiler.simulating.simulation",
)
# What tells how a fork has ended.
_STATUS = re.compile(rb"-?[0-9]{1,9}\n")
_MOST_STATUS_BYTES = 64
# Processes with a traced model that are kept for its next optimizer.
_MOST_MODELS = 2
_POLL_SECONDS = 0.25
_GRACE_SECONDS = 5.0
# From OpenMP's omp.h: give back everything, threads too.
_OMP_PAUSE_HARD = 2


def main() -> None:
    """Load torch, say so, and work until the parent closes the pipe or is gone."""
    parent = os.getppid()
    # Some callers ignore it, which is inherited; the kernel then keeps no child's status.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    jobs, answers = _own_pipes()
    with _ending_with(parent):
        # None of it becomes garbage, and to look for some again and again takes a tenth of the
        # time.
        gc.disable()
        for module in _LOADED:
            import_module(module)
    adopt_orphans()
    try:
        forks = _can_fork()
        if forks:
            _learn_machine()
        gc.freeze()
        gc.enable()
        _send(answers, {"ready": os.getpid()})
        _Zygote(jobs, answers, parent).serve() if forks else _work_alone(jobs, answers, parent)
    finally:
        end_descendants()
        _flush()
        os._exit(0)


def _own_pipes() -> tuple[int, int]:
    """Standard input and output under numbers that no user's code knows; in their place nothing,
    and standard error.

    A line printed is a line kept, in its place among what other languages print, however the
    process ends.
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
    """End this process with its parent while it is busy inside; outside there is no thread, or no
    fork were safe.
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
    """Return whether a fork can do what a fresh process can.

    Without NVML torch asks CUDA itself for its devices, and a fork can use CUDA no more.
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
    """Find in a fork what all records say of this machine: the name of a GPU is asked of CUDA."""
    reader, writer = os.pipe()
    pid = _fork(lambda: _send(writer, environment.fixed()))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    if found:
        environment.know(json.loads(found))


def _load_code(scenario: Scenario) -> None:
    """Load what each fork for a catalogue's model would load; what fails here will fail there, and
    is told.
    """
    from optprof.scenarios.workpiece import load_code

    with suppress(Exception):
        load_code(scenario)
        gc.freeze()


class _OverError(Exception):
    """The parent is done or dead, and nobody waits for what is under way."""


class _Inbox:
    """Lines from a descriptor, which are read when there are some."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.closed = False
        self._read = bytearray()

    def read(self) -> None:
        """Read what is there; the caller knows that something is, if only the end."""
        chunk = os.read(self.descriptor, 1 << 16)
        self.closed = not chunk
        self._read += chunk

    @property
    def size(self) -> int:
        """The bytes that are read and not yet taken."""
        return len(self._read)

    def line(self) -> bytes | None:
        """The next whole line, None as long as there is none."""
        line, end, rest = bytes(self._read).partition(b"\n")
        if not end:
            return None
        self._read = bytearray(rest)
        return line + end


class _Fork:
    """A process that does one job."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.pid = _fork(work)
        self.status: int | None = None

    @property
    def sources(self) -> tuple[int, ...]:
        """Descriptors that have something to read when there is news."""
        return ()

    def poll(self) -> int | None:
        """The exit status of what does the job, or minus the signal that ended it; None while it
        works.
        """
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def end(self) -> None:
        """End it now, if it has not ended."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class _Model(_Fork):
    """A process that traces a model for its first job, and forks another for each; `status` is its
    own.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        ours, its = socket.socketpair()

        def serve() -> None:
            leave()
            ours.close()
            _serve_model(its)

        super().__init__(serve)
        its.close()
        self._channel = ours
        self._inbox = _Inbox(ours.fileno())
        self._found: int | None = None

    @property
    def sources(self) -> tuple[int, ...]:
        """The channel, until its other end is closed."""
        return () if self._inbox.closed else (self._channel.fileno(),)

    def give(self, job: Job, writer: int) -> None:
        """Send it a job, and where the answer goes."""
        self._found = None
        # Where it has been killed, poll says so.
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._channel, [b"\0"], [writer])
            self._channel.sendall(job.to_line())

    def poll(self) -> int | None:
        """The status of the fork that does the job, or its own where it ends before."""
        if self._found is None:
            with suppress(ConnectionResetError):
                if self.sources and select.select(self.sources, [], [], 0)[0]:
                    self._inbox.read()
            line = self._inbox.line()
            if line is None and self._inbox.size < _MOST_STATUS_BYTES:
                self._found = super().poll()
            elif line and _STATUS.fullmatch(line):
                self._found = int(line)
            else:
                # The user's code has found the channel and written into it.
                self.end()
                self._found = self.status
        return self._found

    def settle(self) -> None:
        """Wait until it has nothing to do, for its fork has been ended; what does not get so far is
        ended too.
        """
        until = time.monotonic() + _GRACE_SECONDS
        while self.poll() is None and time.monotonic() < until:
            select.select(self.sources, [], [], 0.02)
        if self._found is None or self._inbox.closed or self._inbox.size:
            self.end()


class _Zygote:
    """Takes jobs from the parent, one after another, and has each done in a process of its own."""

    def __init__(self, jobs: int, answers: int, parent: int) -> None:
        self._jobs = _Inbox(jobs)
        self._answers = answers
        self._parent = parent
        self._models: dict[Scenario, _Model] = {}

    def serve(self) -> None:
        """Work until the parent is done or gone."""
        with suppress(_OverError):
            while True:
                line = self._next()
                # One that comes too late for its job ends nothing.
                if line != END:
                    _write(self._answers, self._done(Job.from_line(line)))

    def _next(self) -> bytes:
        while (line := self._jobs.line()) is None:
            self._wait(self._jobs.descriptor)
        return line

    def _wait(self, *sources: int) -> list[int]:
        """Those of the sources that have something to read, soon; _OverError when the parent is
        gone.
        """
        ready, _, _ = select.select([self._jobs.descriptor, *sources], [], [], _POLL_SECONDS)
        if self._jobs.descriptor in ready:
            self._jobs.read()
        if self._jobs.closed or os.getppid() != self._parent:
            raise _OverError
        return ready

    def _done(self, job: Job) -> bytes:
        """The line that answers a job; nothing is left of it but a traced model."""
        _load_code(job.scenario)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        task = self._start(job, reader, writer)
        os.close(writer)
        try:
            return self._answer_of(task, reader)
        except _OverError:
            # Nobody waits for what it may still do in order.
            task.end()
            raise
        finally:
            os.close(reader)
            self._clear(task)

    def _start(self, job: Job, reader: int, writer: int) -> _Fork:
        def leave() -> None:
            for descriptor in (self._jobs.descriptor, self._answers, reader):
                os.close(descriptor)

        def alone() -> None:
            leave()
            _do(job, writer)

        key = _model_of(job.scenario)
        if key is None:
            return _Fork(alone)
        if key not in self._models:
            while len(self._models) >= _MOST_MODELS:
                self._models.pop(next(iter(self._models))).end()
            self._models[key] = _Model(leave)
        # The last used is the last to go.
        model = self._models[key] = self._models.pop(key)
        model.give(job, writer)
        return model

    def _answer_of(self, task: _Fork, reader: int) -> bytes:
        found, is_open = bytearray(), True
        while True:
            ready = self._wait(*([reader] if is_open else []), *task.sources)
            # Looked at first: what an ended process has written is in the pipe.
            status = task.poll()
            if reader in ready or status is not None:
                is_open = _take(reader, found)
            if b"\n" in found:
                return bytes(found.partition(b"\n")[0]) + b"\n"
            if len(found) > MOST_ANSWER_BYTES:
                return _line(
                    {"refused": f"the process answered more than {MOST_ANSWER_BYTES} bytes"}
                )
            if status is not None:
                return _line({"status": status})
            if self._jobs.line() == END:
                task.end()
                return _line({"status": -signal.SIGKILL})

    def _clear(self, task: _Fork) -> None:
        """End what the job has started."""
        if not isinstance(task, _Model):
            task.end()
        end_descendants(*(model.pid for model in self._models.values() if model.status is None))
        if isinstance(task, _Model):
            task.settle()
            self._models = {
                key: model for key, model in self._models.items() if model.status is None
            }


def _model_of(scenario: Scenario) -> Scenario | None:
    """Return what the trace of the scenario's model depends on; None if none can be shared."""
    from ..simulating.training import without_optimizer

    try:
        return without_optimizer(scenario) if scenario.device == "sim" else None
    except Exception:
        # An unknown GPU; the scenario's own process says so.
        return None


def _serve_model(channel: socket.socket) -> None:
    """Trace the model of the first job, and have every job done in a fork; one job alone where that
    is not safe.
    """
    lines, traced = channel.makefile("rb"), False
    while True:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not descriptors:
            return
        job, writer = Job.from_line(lines.readline()), descriptors[0]
        if not traced:
            _begin(job)
            with _ending_copies():
                failed = trace_ahead(job.scenario)
            gc.freeze()
            if failed is not None:
                _send(writer, answer(failed))
                return
            if not _is_quiet():
                _do(job, writer)
                return
            traced = True
        pid = _fork(partial(_do_below, channel, job, writer))
        os.close(writer)
        channel.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _do_below(channel: socket.socket, job: Job, writer: int) -> None:
    channel.close()
    _do(job, writer)


def _begin(job: Job) -> None:
    """Let the job's code be found where its parent finds it."""
    sys.path[:] = job.path
    if job.scenario.device == "sim" and ":" not in job.scenario.model:
        # Autograd starts a thread for each GPU that it sees, and a catalogue's model needs none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _do(job: Job, writer: int) -> None:
    _begin(job)
    with _ending_copies():
        found = work(job)
    _send(writer, found)


@contextmanager
def _ending_copies() -> Iterator[None]:
    """End the copies of this process that the user's code makes inside: they are asked nothing."""
    asked = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != asked:
            _flush()
            os._exit(0)


def _is_quiet() -> bool:
    """Return whether this process has no thread that a fork would miss; OpenMP's are ended."""
    library = ctypes.CDLL(None)
    if hasattr(library, "omp_pause_resource_all"):
        # A fork that has a pool on paper, and no threads in it, would wait for them forever.
        library.omp_pause_resource_all(_OMP_PAUSE_HARD)
    if thread_count() > 1:
        # OpenBLAS ends its threads before a fork.
        os.waitpid(_fork(lambda: None), 0)
    return thread_count() == 1


def _work_alone(jobs: int, answers: int, parent: int) -> None:
    """Do one job in this process, which ends with its parent and with what it has started."""
    inbox = _Inbox(jobs)
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
    _do(Job.from_line(line), answers)


def _fork(work: Callable[[], Any]) -> int:
    """Work in another process, which has a session of its own and ends with this one; return its
    number.
    """
    parent = os.getpid()
    _flush()
    with warnings.catch_warnings():
        # Of threads; there are none when it happens.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        end_with(parent)
        os.setsid()
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing of the zygote's is to be cleaned up twice.
        _flush()
        os._exit(status)


def _take(reader: int, found: bytearray) -> bool:
    """Take what is in a pipe, up to a whole line or too much; False when nothing more can come."""
    while b"\n" not in found and len(found) <= MOST_ANSWER_BYTES:
        try:
            chunk = os.read(reader, 1 << 16)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        found += chunk
    return True


def _flush() -> None:
    """See what was printed into the pipe, by Python and by C."""
    for stream in (sys.stdout, sys.stderr):
        # One that the user's code has closed, or put in place, may raise anything.
        with suppress(Exception):
            stream.flush()
    if ON_LINUX:
        ctypes.CDLL(None).fflush(None)


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, allow_nan=False).encode() + b"\n"


def _send(descriptor: int, data: dict[str, Any]) -> None:
    line = _line(data)
    _flush()
    _write(descriptor, line)


def _write(descriptor: int, line: bytes) -> None:
    view = memoryview(line)
    while view:
        view = view[os.write(descriptor, view) :]
