"""Run commands as a user does, each in a new process that has torch loaded already.

A server loads torch, transformers and optprof once for all tests of a worker. It forks a process
for each command, and the command's zygote is a fork too. A fresh command that loads torch twice
takes six seconds; tests of the start itself use `subprocess`.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn
from unittest import mock

_MOST_BYTES = 1 << 20


def run(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Return what `python -m optprof ARGUMENTS` printed and its exit status."""
    environment = {**(os.environ if env is None else env)}
    with TemporaryFile() as out, TemporaryFile() as err, socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(timeout)
        channel.connect(_server())
        job = json.dumps({"arguments": [*arguments], "cwd": str(cwd), "env": environment})
        nothing = os.open(os.devnull, os.O_RDONLY)
        socket.send_fds(channel, [job.encode()], [nothing, out.fileno(), err.fileno()])
        os.close(nothing)
        status = int(channel.recv(64) or b"-9")
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(
            ["optprof", *arguments], status, out.read().decode(), err.read().decode()
        )


@cache
def _server() -> str:
    """Start the server and return the name of its socket."""
    name = f"\0optprof-tests-{os.getpid()}"
    ready, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, name[1:], str(writer)],
        pass_fds=[writer],
        stdin=subprocess.DEVNULL,
    )
    atexit.register(process.kill)
    os.close(writer)
    if os.read(ready, 1) != b"+":
        raise RuntimeError(f"the server of commands ended with status {process.wait()}")
    os.close(ready)
    return name


def _serve(name: str, ready: int) -> None:
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    import optprof.cli.app
    import optprof.profiler.measuring.measurement
    import optprof.profiler.simulating.simulation  # noqa: F401

    parent = os.getppid()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()
    listener.settimeout(1.0)
    os.write(ready, b"+")
    os.close(ready)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == parent:
        try:
            channel, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            _wait_for(channel)
        channel.close()


def _wait_for(channel: socket.socket) -> NoReturn:
    """Fork the command and send its exit status to the client."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    channel.settimeout(None)
    message, descriptors, _, _ = socket.recv_fds(channel, _MOST_BYTES, 3)
    job = json.loads(message)
    pid = os.fork()
    if pid == 0:
        channel.close()
        os.setsid()
        os.chdir(job["cwd"])
        _exit_after(lambda: _command(job["arguments"]), descriptors, job["env"])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    channel.sendall(str(status).encode())
    os._exit(0)


def _command(arguments: Sequence[str]) -> None:
    """Do what `python -m optprof` does, with the zygote as a fork of this process."""
    import optprof
    from optprof.cli import main
    from optprof.profiler.running import worker

    mock.patch.object(worker, "subprocess", _Subprocess).start()
    sys.argv = [f"{Path(optprof.__file__).parent / '__main__.py'}", *arguments]
    main()


def _exit_after(
    function: Callable[[], object], descriptors: Sequence[int], env: Mapping[str, str]
) -> NoReturn:
    """Run a function on these standard streams and exit as the interpreter does."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(env)
    places = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [os.path.abspath(place) for place in places]  # noqa: PTH100
    status = 0
    try:
        function()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
        status = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Subprocess:
    """The names of `subprocess` that the worker uses; `Popen` forks."""

    TimeoutExpired = subprocess.TimeoutExpired

    class Popen:
        """The zygote as a fork of this process."""

        def __init__(self, *_: object, stdin: int, stdout: int, stderr: int, env: Any, **__: Any):
            self.returncode: int | None = None
            sys.stdout.flush()
            sys.stderr.flush()
            self.pid = os.fork()
            if self.pid == 0:
                from optprof.profiler.running.zygote import main

                os.setsid()
                _exit_after(main, (stdin, stdout, stderr), env)

        def poll(self) -> int | None:
            """Return the exit status, None while the process runs."""
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

        def wait(self, timeout: float | None = None) -> int:
            """Return the exit status once the process has ended."""
            end = time.monotonic() + (timeout or 1e9)
            while self.poll() is None:
                if time.monotonic() > end:
                    raise subprocess.TimeoutExpired("zygote", timeout or 0)
                time.sleep(0.005)
            assert self.returncode is not None
            return self.returncode


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
