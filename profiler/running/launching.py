"""Launch the ranks of a measured training run by torchrun's elastic agent, and wait for them.

On Linux they are forks of this process, which has loaded torch already. Each line that a rank
prints reaches the log with the rank in front.
"""

import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from optprof.scenarios import Scenario

from ..machine.memory import kernel_kills
from ..records.record import Outcome
from .forks import flush, is_safe_to_fork
from .log import last_lines
from .processes import ON_LINUX, end_with, how_it_ended

# Seconds to wait for the other machines, and torchrun's usual port.
PATIENCE = 600
DEFAULT_PORT = 29400
_FAILED = 1
# Seconds between two looks of the agent at its ranks, and how many looks a failed rank waits for.
_INTERVAL, _ROUNDS = 0.1, 10
# Signals that the agent handles; a rank simply ends.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_MOST_LAST_BYTES = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The machines of measured ranks: their number, and the HOST:PORT where they meet.

    `is_host` is true on the machine that HOST names, which keeps the records. A single machine
    needs no endpoint.
    """

    nnodes: int = 1
    endpoint: str | None = None
    is_host: bool = True


ONE_NODE = Nodes()


def read_nodes(nnodes: int, endpoint: str | None) -> Nodes:
    """Return the machines of a command; ValueError says what is wrong with the endpoint.

    `endpoint` is HOST:PORT, or HOST with torchrun's usual port.
    """
    if nnodes < 1:
        raise ValueError(f"--nnodes is a number of machines, 1 or more; got {nnodes}")
    if endpoint is None:
        if nnodes > 1:
            raise ValueError(
                f"--nnodes {nnodes} needs --rdzv-endpoint HOST:PORT, where the machines meet; give"
                " the same on each"
            )
        return ONE_NODE
    from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

    host, port = parse_rendezvous_endpoint(endpoint, DEFAULT_PORT)
    is_host = _is_here(host, port)
    if nnodes == 1 and not is_host:
        raise ValueError(
            f"--rdzv-endpoint {endpoint} is on another machine; add --nnodes, or leave it out"
        )
    return Nodes(nnodes=nnodes, endpoint=f"{host}:{port}", is_host=is_host)


def _is_here(host: str, port: int) -> bool:
    """Return whether this machine has the address; raise ValueError if its port is taken."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(
            f"--rdzv-endpoint names no machine that is known here: {host!r} ({error.strerror})"
        ) from None
    is_here = False
    for family, kind, protocol, _, address in places:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ValueError(
                        f"port {port} of {host} is taken; give --rdzv-endpoint another one"
                    ) from None
            else:
                is_here = True
    return is_here


def require_nodes(scenarios: Iterable[Scenario], nodes: Nodes) -> None:
    """Raise ValueError if measured ranks cannot be launched on these machines."""
    measured = [each for each in scenarios if each.parallel is not None and each.device != "sim"]
    if nodes.nnodes > 1 and not measured:
        raise ValueError(
            "--nnodes is for measured ranks; add --ranks, --parallel and --device cuda or cpu"
        )
    for scenario in measured:
        if scenario.ranks % nodes.nnodes:
            raise ValueError(
                f"--nnodes must divide the ranks, got {nodes.nnodes} machines for"
                f" {scenario.ranks} ranks"
            )
        _require_gpus(scenario, scenario.ranks // nodes.nnodes)


def _require_gpus(scenario: Scenario, local_ranks: int) -> None:
    import torch

    if scenario.device == "cuda" and local_ranks > (count := torch.cuda.device_count()):
        raise ValueError(
            f"{local_ranks} ranks need {local_ranks} GPUs on this machine, and it has {count}; use"
            " fewer --ranks, more machines with --nnodes, or --device sim"
        )


class RankFailedError(Exception):
    """A rank failed or ended; the text names it, and `outcome` is that of the record."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome: Outcome = outcome


def launch_ranks(
    work: Callable[..., Any],
    *arguments: Any,
    name: str,
    local_ranks: int,
    nodes: Nodes,
    scratch: Path,
) -> Any:
    """Return the result of `work` on this machine's first rank, once all ranks have ended.

    `name` is the same on all machines, and of this launch alone. Ranks write into `scratch`.
    Raises RankFailedError for the first rank that failed, and ConnectionError if the machines do
    not meet.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    is_alone = nodes.nnodes == 1
    endpoint = nodes.endpoint or "localhost:0"
    config = LaunchConfig(
        min_nodes=nodes.nnodes,
        max_nodes=nodes.nnodes,
        nproc_per_node=local_ranks,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        rdzv_configs={"is_host": nodes.is_host, "join_timeout": PATIENCE},
        max_restarts=0,
        monitor_interval=_INTERVAL,
        start_method="fork" if ON_LINUX and is_safe_to_fork() else "spawn",
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch), tee=Std.ALL),
        log_line_prefix_template="[rank ${rank}] ",
        local_addr="localhost" if is_alone else None,
    )
    kills, start = kernel_kills(), time.monotonic()
    try:
        results = elastic_launch(config, _as_rank)(work, str(scratch), *arguments)
    except ChildFailedError as error:
        raise _failure(error.failures, scratch, kills) from None
    except RendezvousError as error:
        count = "this machine" if is_alone else f"{nodes.nnodes} machines"
        raise ConnectionError(
            f"torchrun found no meeting point for {count} at {endpoint} after"
            f" {time.monotonic() - start:.0f} s ({error.__cause__ or error}); give an"
            " --rdzv-endpoint whose port is free and that each machine reaches"
        ) from error
    return next(result for result in results.values() if result is not None)


def _as_rank(work: Callable[..., Any], scratch: str, *arguments: Any) -> Any:
    """Do the work of a rank in its own process; leave a failure in a file for the launcher."""
    if ON_LINUX:
        end_with(os.getppid())
    for number in _SIGNALS:
        # The fork has inherited handlers that wait for Python, and a collective waits in C++.
        signal.signal(number, signal.SIG_DFL)
    try:
        result = work(*arguments)
    except RankFailedError as error:
        _leave(error, Path(scratch))
    return result if os.environ["LOCAL_RANK"] == "0" else None


def _leave(error: RankFailedError, scratch: Path) -> NoReturn:
    failure = {"outcome": error.outcome, "error": str(error)}
    _file_of(scratch, int(os.environ["RANK"])).write_text(json.dumps(failure), encoding="utf-8")
    flush()
    # If this rank failed because another one ended, the agent sees that first and ends this one.
    time.sleep(_ROUNDS * _INTERVAL)
    # Whatever holds this process, such as a collective that is never done.
    os._exit(_FAILED)


def _file_of(scratch: Path, rank: int) -> Path:
    return scratch / f"failure-{rank}.json"


def _failure(failures: dict[int, Any], scratch: Path, kills: int) -> RankFailedError:
    """Return the failure that the agent saw first."""
    rank, failure = min(failures.items(), key=lambda pair: pair[1].timestamp)
    path = _file_of(scratch, rank)
    if not path.exists():
        return _ended(rank, failure, scratch, kills)
    left = json.loads(path.read_text(encoding="utf-8"))
    return RankFailedError(left["outcome"], f"rank {rank}: {left['error']}")


def _ended(rank: int, failure: Any, scratch: Path, kills: int) -> RankFailedError:
    """Return the failure of a rank that ended without a word, with the last lines that it wrote."""
    status = failure.exitcode
    by_kernel = status == -signal.SIGKILL and kernel_kills() > kills
    outcome: Outcome = "out-of-memory" if by_kernel else "killed" if status < 0 else "failed"
    words = (
        "was ended by the kernel: the machine, or its control group, ran out of memory"
        if by_kernel
        else how_it_ended(status)
    )
    # torchrun keeps a file for each stream below a folder with the rank's number on this machine.
    paths = sorted(scratch.glob(f"*/attempt_0/{failure.local_rank}/std*.log"))
    last = last_lines("\n".join(map(_end_of, paths)))
    return RankFailedError(outcome, "; ".join(filter(None, (f"rank {rank} {words}", last))))


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MOST_LAST_BYTES))
        return file.read().decode(errors="replace")
