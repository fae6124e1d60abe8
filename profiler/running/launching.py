"""Launch the ranks of a measured training run by torchrun's elastic agent, and wait for them.

On Linux they are forks of this process, which has loaded torch already. Each line that a rank
prints reaches the log with the rank in front.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..machine.memory import kernel_kills
from ..records.record import Outcome
from .forks import flush, is_safe_to_fork
from .log import last_lines
from .processes import ON_LINUX, end_with, how_it_ended

# Seconds to wait for the other machines.
PATIENCE = 600
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
    written = [
        path.read_bytes()[-_MOST_LAST_BYTES:].decode(errors="replace")
        for path in sorted(scratch.glob(f"*/attempt_0/{failure.local_rank}/std*.log"))
    ]
    last = last_lines("\n".join(written))
    return RankFailedError(outcome, "; ".join(filter(None, (f"rank {rank} {words}", last))))
