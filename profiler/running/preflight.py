"""What is looked at before a GPU is loaded: whether what the simulation needs is free there."""

import torch

from optprof.scenarios import Scenario

from ..allocator.out_of_memory import format_bytes
from ..measuring.cuda_memory import apply_alloc_conf
from ..records.record import Record


class DoesNotFitError(MemoryError):
    """A scenario would hold more than is free, by its simulation."""


def require_room(scenario: Scenario, simulated: Record | None) -> None:
    """DoesNotFitError when a CUDA run would have to hold more than its device has free now.

    The most that is allocated at once decides: what the allocator reserves beyond it is given back
    when memory runs short. On the CPU `measure` takes as much of a scenario as fits. A scenario
    that could not be simulated is let through.
    """
    memory = simulated.memory if simulated else None
    if scenario.device != "cuda" or memory is None or memory.peak_allocated is None:
        return
    # Asking starts CUDA, which takes the allocator's settings as they are then.
    apply_alloc_conf(scenario.alloc_conf)
    # The process's own context is there by now, and counted.
    free, total = torch.cuda.mem_get_info()
    if memory.peak_allocated > free:
        raise DoesNotFitError(
            f"needs {format_bytes(memory.peak_allocated)} by simulation, and {format_bytes(free)}"
            f" of {format_bytes(total)} are free; --force runs it all the same"
        )
