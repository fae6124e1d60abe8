"""Cluster: scenarios as tasks of Ray, on the nodes of a cluster or on this machine.

Ray schedules the tasks, sends their results, finds out that a worker or a node has died, and tries
such a task again. A task runs its scenario as every run does, in processes of its own.
"""

import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from msgspec import Meta

from optprof.scenarios import Scenario, schema

from ..machine.doctor import require_installed
from ..machine.environment import command
from ..records.outcome import one_line
from ..records.record import Outcome, Record
from ..records.store import FOLDERS, RunStore
from ..safety import disk
from .child import without_result
from .recording import reason_of
from .runner import Runner
from .worker import Worker

_PATIENCE = 10.0
_CLIENT = "ray://"
MOST_RETRIES = 100
# Ray's errors have pages on where to find its logs.
_MOST_LETTERS = 400
# Files of one scenario, which travel with its record.
_MOST_BYTES = 1 << 30


def require_retries(retries: int) -> int:
    """Return the number of retries; ValueError unless it is from 0 to 100."""
    schema.check(Annotated[int, Meta(ge=0, le=MOST_RETRIES)], retries, "retries")
    return retries


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings with which a node runs a scenario: `options` of `Runner`, and the driver's folders.

    A node that has these folders imports the user's code from them.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    path: tuple[str, ...] = field(default_factory=lambda: tuple(map(str, sys.path)))
    folder: str = field(default_factory=os.getcwd)


@contextmanager
def connected(on: str) -> Iterator[Any]:
    """Connect to a cluster and yield Ray: "ray" for this machine, or an address of a cluster.

    ValueError for another value and without Ray, ConnectionError for a cluster that cannot be
    reached.
    """
    host, port = _address(on)
    require_installed("--on", "ray")
    # Nothing about a run leaves the user's machines.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if host:
        _require_answer(on, host, port)
    ray = import_module("ray")
    start = time.monotonic()
    address = None if on == "ray" else on
    try:
        # Ray would let its workers import from the current folder, which may be a stranger's.
        with chdir("/"), warnings.catch_warnings(action="ignore"):
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        seconds = time.monotonic() - start
        raise ConnectionError(
            f"no connection to Ray ({on}) after {seconds:.0f} s: {_shown(error)}; if the cluster"
            " asks for a token, set RAY_AUTH_MODE=token"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def has_cuda(ray: Any) -> bool:
    """Return whether a node of the cluster has a GPU."""
    return ray.cluster_resources().get("GPU", 0) > 0


def _address(on: str) -> tuple[str, int]:
    """Return the host and port of a cluster; an empty host for one on this machine."""
    if on == "ray":
        return "", 0
    host, _, port = on.removeprefix(_CLIENT).rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(
            f"--on must be ray, ray://HOST:PORT or HOST:PORT, got {on!r}; ray uses this machine"
        )
    return host.strip("[]"), int(port)


def _require_answer(on: str, host: str, port: int) -> None:
    start = time.monotonic()
    try:
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except OSError as error:
        raise ConnectionError(
            f"no cluster answers at {on}: {reason_of(error)}, after {time.monotonic() - start:.1f}"
            " s; `ray status` on its head node says whether it runs"
        ) from None


class Cluster:
    """Gives each scenario to Ray as a task.

    It requests one CPU to simulate, a CPU and a GPU for each rank to measure on CUDA, and to
    measure on the CPU as many CPUs as the largest node has, so that nothing else runs there. A task
    whose worker or node has died is tried again up to `retries` times. `options` are those of
    `Runner`.
    """

    starts_at_once = False

    def __init__(self, ray: Any, store: RunStore, *, retries: int = 0, **options: Any) -> None:
        self._ray, self._store, self._retries = ray, store, retries
        self._settings = Settings(options=options)
        self._scenarios: Sequence[Scenario] = ()
        self._remote = ray.remote(run_task)

    def groups(self, scenarios: Sequence[Scenario]) -> list[list[int]]:
        """Take the scenarios; each is a task."""
        self._scenarios = scenarios
        return [[place] for place in range(len(scenarios))]

    def choose(self, waiting: Sequence[list[int]], running: Iterable[list[int]]) -> int | None:
        """Return the first: what a cluster has no room for waits there."""
        del waiting, running
        return 0

    def start(self, group: Sequence[int]) -> "Future[Any]":
        """Give a scenario to Ray."""
        scenario = self._scenarios[group[0]]
        remote = self._remote.options(
            **self._resources(scenario),
            max_retries=self._retries,
            name=f"{scenario.model} {scenario.optimizer}",
        )
        return remote.remote(scenario, self._settings).future()

    def records(self, group: Sequence[int], future: "Future[Any]") -> list[Record]:
        """Return the scenario's record, after writing the files that came with it."""
        scenario = self._scenarios[group[0]]
        try:
            data, files = future.result()
            record = Record.from_dict(data)
        except self._ray.exceptions.RayError as error:
            return [without_result(scenario, *self._end_of(error))]
        except ConnectionError as error:
            raise ConnectionError(
                f"the connection to the cluster was lost: {_shown(error)}; what is finished is in"
                f" {self._store.folder}, go on with --resume"
            ) from error
        environment = replace(record.environment, command=tuple(command()))
        record = replace(record, scenario=scenario, environment=environment)
        return [_with_files(record, files, self._store)]

    def stop(self) -> None:
        """Disconnect: Ray ends the tasks of a driver that is gone."""
        self._ray.shutdown()

    def _resources(self, scenario: Scenario) -> dict[str, float]:
        if scenario.device == "cpu":
            nodes = (node["Resources"] for node in self._ray.nodes() if node["Alive"])
            return {"num_cpus": max((node.get("CPU", 1) for node in nodes), default=1)}
        return {"num_cpus": 1, "num_gpus": scenario.ranks if scenario.device == "cuda" else 0}

    def _end_of(self, error: Exception) -> tuple[Outcome, str]:
        """Return the outcome of a task without a result, and a line that names what happened."""
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.RayTaskError):
            cause = getattr(error, "cause", None) or error
            return "failed", f"the task failed on its node: {one_line(cause)}"
        full = isinstance(error, exceptions.OutOfMemoryError)
        tries = f", tried {self._retries + 1} times" if self._retries else ""
        # Ray's text has addresses of machines.
        text = "" if self._store.anonymous else f": {_shown(error)}"
        line = f"Ray lost the task{tries}: {type(error).__name__}{text}"
        return "out-of-memory" if full else "killed", line


def _shown(error: Exception) -> str:
    """Return the beginning of an error's text as one line."""
    return schema.shortened(" ".join(str(error).split()), _MOST_LETTERS)


def _with_files(record: Record, files: Mapping[str, bytes], store: RunStore) -> Record:
    """Write the files of a record into the run; its `lost` names those that do not fit."""
    lost = record.lost
    for name, data in files.items():
        path = store.folder / name
        if name == record.log:
            path = store.log_path()
            record = replace(record, log=path.relative_to(store.folder).as_posix())
        try:
            disk.make_folder(path.parent, below=store.folder)
            disk.write_bytes(path, data, below=store.folder)
        except (OSError, ValueError) as error:
            lost = (*lost, f"{name}: {reason_of(error)}")
    return replace(record, lost=lost)


def run_task(scenario: Scenario, settings: Settings) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Run a scenario on a node; return its record and the files of its run."""
    with suppress(OSError):
        os.chdir(settings.folder)
    sys.path += [place for place in settings.path if place and place not in sys.path]
    with TemporaryDirectory(prefix="optprof-") as folder:
        runner = Runner(worker=_worker(), store=RunStore(Path(folder)), **settings.options)
        record = runner.find(scenario)
        files, lost = _packed(Path(folder))
    return replace(record, lost=record.lost + lost).to_dict(), files


@cache
def _worker() -> Worker:
    """Return the worker of this process of Ray, which ends with it."""
    return Worker()


def _packed(folder: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the files of a run by their names, and a line for each that is too large to send."""
    files: dict[str, bytes] = {}
    lost: list[str] = []
    for path in sorted(path for name in FOLDERS for path in (folder / name).rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        name, nbytes = path.relative_to(folder).as_posix(), path.stat().st_size
        if nbytes + sum(map(len, files.values())) > _MOST_BYTES:
            lost.append(f"{name}: its {nbytes} bytes are too many to send from the node")
        else:
            files[name] = path.read_bytes()
    return files, tuple(lost)
