"""In-place writes of autograd, over all operations of torch's own test database.

Each operation runs forward and backward on the CPU twice: without a dispatch mode, and under one
that only writes in place when InPlace says so. Both must allocate and free the same bytes.
"""

from bisect import bisect_right
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optprof.profiler.tracing.in_place import InPlace

CUDA_TOO = "on CUDA autograd takes the path of a subclass as well"
ASKS = "without a mode autograd asks whether an element is zero, and takes a shorter way"
RARE = "not undone: gradients through this are rare in training"
DIFFERENT = {
    "max_reduction_no_dim": CUDA_TOO,
    "min_reduction_no_dim": CUDA_TOO,
    "median": CUDA_TOO,
    "nanmedian": CUDA_TOO,
    "aminmax": CUDA_TOO,
    "prod": ASKS,
    "cumprod": ASKS,
    "masked_cumprod": ASKS,
    "linalg_vander": ASKS,
    "masked_fill": "the gradient of a filling tensor has as many elements as the mask has True",
    "nn_functional_binary_cross_entropy": "the gradient of targets, which are not trained",
    "nn_functional_binary_cross_entropy_with_logits": (
        "the gradient of targets, which are not trained"
    ),
    "nn_functional_scaled_dot_product_attention": "tracing/attention.py adds the mask itself",
    "clamp": "the gradients of bounds, which are not trained",
    "nn_functional_ctc_loss": RARE,
    "linalg_eigh": RARE,
    "linalg_householder_product": RARE,
    "matrix_exp": RARE,
    "ormqr": RARE,
}
SAMPLES = 2


class Undoing(TorchDispatchMode):
    """Runs each operation unchanged, or in place."""

    def __init__(self) -> None:
        super().__init__()
        self._in_place = InPlace()
        self._stack = ExitStack()

    def __enter__(self) -> "Undoing":
        self._stack.enter_context(self._in_place.followed())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        written = self._in_place.instead_of(func, args)
        if written is not None:
            written[0](*written[1], **(kwargs or {}))
            return written[1][0].detach()
        result = func(*args, **(kwargs or {}))
        self._in_place.note(func, result)
        return result


def samples() -> list[tuple[Any, Any]]:
    """Return operations with gradients, each with its first inputs that are not scalars."""
    pairs = []
    for op in op_db:
        # Gradients of eigenvectors need a special loss, and sparse tensors have no storage.
        if torch.float32 not in op.dtypes or op.name in ("linalg.eig", "to_sparse"):
            continue
        # The inner function of op.sample_inputs, which itself walks the whole stack each time.
        make = partial(op.sample_inputs_func, op, "cpu", torch.float32, requires_grad=True)
        inputs = make() if op.supports_autograd else ()
        for sample in islice(inputs, SAMPLES):
            tensors = [leaf for leaf in tree_leaves(sample.input) if isinstance(leaf, torch.Tensor)]
            if all(tensor.numel() > 2 for tensor in tensors):
                pairs.append((op, sample))
    return pairs


def allocations(pairs: list[tuple[Any, Any]], mode: Callable[[], Any]) -> list[list[int]]:
    """Return the bytes of each event of each operation without scalars, negative for a free."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        for op, sample in pairs:
            torch.manual_seed(0)
            for tensor in tree_leaves((sample.input, sample.args, sample.kwargs)):
                if isinstance(tensor, torch.Tensor):
                    tensor.grad = None
            with torch.profiler.record_function("one operation"), mode():
                outputs = tree_leaves(op(sample.input, *sample.args, **sample.kwargs))
                outputs = [output for output in outputs if output.requires_grad]
                torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            del outputs
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events: Any = profile.profiler.kineto_results.events()
    memory = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    begins = sorted(event.start_ns() for event in events if event.name() == "one operation")
    assert len(begins) == len(pairs)
    streams: list[list[int]] = [[] for _ in pairs]
    for time, nbytes in memory:
        if time >= begins[0] and abs(nbytes) > 8:
            streams[bisect_right(begins, time) - 1].append(nbytes)
    return [_between_allocations(stream) for stream in streams]


def _between_allocations(stream: list[int]) -> list[int]:
    places = [place for place, nbytes in enumerate(stream) if nbytes > 0]
    return stream[places[0] : places[-1] + 1] if places else []


@pytest.mark.filterwarnings("ignore")
def test_a_mode_that_writes_in_place_allocates_as_without_a_mode():
    pairs = samples()
    assert len(pairs) > 500
    # The first run fills caches. Operations that differ between two runs draw random numbers.
    _, first, second = (allocations(pairs, nullcontext) for _ in range(3))
    with_mode = allocations(pairs, Undoing)
    different = {
        op.formatted_name
        for (op, _), plain, again, undone in zip(pairs, first, second, with_mode, strict=True)
        if plain == again != undone
    }
    assert different <= set(DIFFERENT)
    assert len(different) > 5
