"""What an exception makes of a scenario: its outcome, and the one line that says why."""

from .record import Outcome

# What is raised, as a RuntimeError, where it is not torch's own OutOfMemoryError.
_FULL = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def outcome_of(error: BaseException) -> Outcome:
    """What an exception makes of a scenario: memory that ran out, on the device or the host, or a failure."""
    import torch

    full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    return "out-of-memory" if full or told else "failed"


def one_line(error: BaseException) -> str:
    """The exception's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
