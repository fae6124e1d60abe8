"""Jobs: the number of simulations that this machine can run at once."""

import os
from typing import Annotated

from msgspec import Meta

from optprof.scenarios import schema

from ..machine.memory import free_bytes
from .processes import ON_LINUX

MOST_JOBS = 256
# Several times what a simulation takes in addition to the memory that it shares with the zygote:
# 43 MiB for tiny, 57 MiB for gpt2-xl, 91 MiB for one rank of gpt2-xl under FSDP2. A factory's model
# may hold data.
_JOB_BYTES = 512 << 20


def usual_jobs() -> int:
    """Return the number of simulations for which there are cores and memory."""
    if not ON_LINUX:
        # A process for each simulation would load torch again.
        return 1
    return max(1, min(_cores(), free_bytes() // _JOB_BYTES, MOST_JOBS))


def require_jobs(jobs: int) -> int:
    """Return the number of jobs; ValueError unless it is from 1 to 256."""
    schema.check(Annotated[int, Meta(ge=1, le=MOST_JOBS)], jobs, "jobs")
    return jobs


def _cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))
