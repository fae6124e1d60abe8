"""Ranks of a measured training run: their process group, decisions together, and one record of all.

Each rank is a process that torchrun's agent has started, with its place in the environment.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from optprof.scenarios import Scenario
from optprof.scenarios.parallel import read_parallel

from ..allocator.out_of_memory import format_bytes
from ..machine.memory import free_bytes
from ..records.record import Memory, RankBytes, Ranks, Record, Watched
from .cuda_memory import DoesNotFitError, apply_alloc_conf


@contextmanager
def process_group(scenario: Scenario) -> Iterator[None]:
    """Join the group of all ranks, on this rank's own GPU or with its share of the processors."""
    local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // local_ranks))
    if scenario.device == "cuda":
        # Before CUDA starts.
        apply_alloc_conf(scenario.alloc_conf)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # What ranks decide and tell each other stays on the host.
    dist.init_process_group("cpu:gloo,cuda:nccl" if scenario.device == "cuda" else "gloo")
    yield
    # Not after an exception, when it could wait for the other ranks.
    dist.destroy_process_group()


def require_group(scenario: Scenario) -> None:
    """Raise ValueError unless this process is one of the scenario's ranks."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size != scenario.ranks or not dist.is_initialized():
        raise ValueError(
            f"a measurement of {scenario.ranks} ranks runs in a process group of that size, and"
            f" this process is one of {size}; optprof.profile and the command line start the ranks"
        )


def require_room_on_host(scenario: Scenario, simulated: Record | None, local_ranks: int) -> None:
    """Raise DoesNotFitError if the ranks of this machine need more than half of its free memory.

    On the CPU each needs its simulated peak. On any device each builds the whole model on the CPU
    first. Without a simulation nothing is raised.
    """
    memory = simulated.memory if simulated else None
    if simulated is None or memory is None or simulated.parameter_count is None:
        return
    widest = max((getattr(torch, name).itemsize for name in memory.parameters_by_dtype), default=0)
    peak = (memory.peak_allocated or 0) if scenario.device == "cpu" else 0
    needed = local_ranks * max(peak, simulated.parameter_count * widest)
    usable = free_bytes() // 2
    if needed > usable:
        raise DoesNotFitError(
            f"{local_ranks} ranks on this machine need {format_bytes(needed)} of its memory, and"
            f" half of what is free is {format_bytes(usable)}; no part of them can be left out;"
            " --force runs them all the same"
        )


def agreed(own: bool) -> bool:
    """Return the decision of the first rank, whatever this rank would decide."""
    decision = torch.tensor([int(own)])
    dist.broadcast(decision, 0)
    return bool(decision.item())


def any_rank(own: bool) -> bool:
    """Return whether any rank says yes."""
    answer = torch.tensor([int(own)])
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer.item())


def of_all_ranks(own: Record) -> Record:
    """Return one record of all ranks from the record of each: the same one on every rank."""
    records: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(records, own)
    return joined(records)


def joined(records: Sequence[Record]) -> Record:
    """Return the record of a training run from those of its ranks, in their order.

    It has the memory of the rank with the highest peak, or with the most bytes where peaks are
    unknown, and the times of the slowest rank, by the median iteration. Its samples and tokens are
    those of all ranks together; ranks that share layers read the same ones.
    """
    scenario = records[0].scenario
    readers = scenario.ranks // read_parallel(scenario.parallel).tensor if scenario.parallel else 1
    memories = [record.memory for record in records]
    each = tuple(
        rank_bytes(rank, memory) for rank, memory in enumerate(memories) if memory is not None
    )
    slowest = max(range(len(records)), key=lambda rank: _typical_seconds(records[rank]))
    ranks = Ranks(each=each, slowest=slowest)
    fullest = records[ranks.fullest.rank if ranks.fullest else 0]
    of_slowest = records[slowest]
    watched, timed = fullest.watched or Watched(), of_slowest.watched or Watched()
    traced = [record.watched.operations for record in records if record.watched]
    return replace(
        records[0],
        memory=fullest.memory,
        times=of_slowest.times,
        warmup=of_slowest.warmup,
        watched=replace(
            watched,
            samples=watched.samples and watched.samples * readers,
            tokens=watched.tokens and watched.tokens * readers,
            gpu=timed.gpu,
            warnings=timed.warnings,
            # One rank alone writes a trace.
            operations=next(filter(None, traced), ()),
        ),
        ranks=ranks,
    )


def rank_bytes(rank: int, memory: Memory) -> RankBytes:
    """Return the bytes of one rank."""
    return RankBytes(
        rank=rank,
        parameters=memory.parameters,
        gradients=memory.gradients,
        optimizer_state=memory.optimizer_state,
        peak_allocated=memory.peak_allocated,
        peak_reserved=memory.peak_reserved,
    )


def _typical_seconds(record: Record) -> float:
    times = record.times or {}
    samples = times.get("iteration") or times.get("step") or (0.0,)
    return median(samples)
