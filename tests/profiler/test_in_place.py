"""Autograd's writes in place, over all operations of torch's own test database.

An operation runs forward and backward on the CPU: without a dispatch mode, and under one that does
nothing but write in place where InPlace says so. Both must allocate and free the same bytes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiler.tracing.in_place import InPlace

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
    "nn_functional_binary_cross_entropy_with_logits": "the gradient of targets, which are not trained",
    "nn_functional_scaled_dot_product_attention": "tracing/attention.py adds the mask itself",
    "nn_functional_ctc_loss": RARE,
    "linalg_eigh": RARE,
    "linalg_householder_product": RARE,
    "matrix_exp": RARE,
    "ormqr": RARE,
}
SAMPLES = 4


class Undoing(TorchDispatchMode):
    """Runs each operation as it is, or in place."""

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


def run(op: Any, sample: Any, mode: Any) -> list[int]:
    """Bytes of each event from the operation's first to the last allocation, scalars aside."""
    for tensor in tree_leaves((sample.input, sample.args, sample.kwargs)):
        if isinstance(tensor, torch.Tensor):
            tensor.grad = None
    torch.manual_seed(0)
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile, mode:
        outputs = [t for t in tree_leaves(op(sample.input, *sample.args, **sample.kwargs)) if t.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        del outputs
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events: Any = profile.profiler.kineto_results.events()
    found = [event.nbytes() for event in events if event.name() == "[memory]"]
    return _between_allocations([nbytes for nbytes in found if abs(nbytes) > 8])


def _between_allocations(stream: list[int]) -> list[int]:
    places = [place for place, nbytes in enumerate(stream) if nbytes > 0]
    return stream[places[0] : places[-1] + 1] if places else []


def samples(op: Any) -> Iterator[Any]:
    inputs = op.sample_inputs("cpu", torch.float32, requires_grad=True)
    for _, sample in zip(range(SAMPLES), inputs, strict=False):
        tensors = [leaf for leaf in tree_leaves(sample.input) if isinstance(leaf, torch.Tensor)]
        if all(tensor.numel() > 2 for tensor in tensors):
            yield sample


@pytest.mark.filterwarnings("ignore")
def test_a_mode_that_writes_in_place_allocates_what_no_mode_does():
    different, compared = set(), 0
    for op in op_db:
        if torch.float32 not in op.dtypes or not op.supports_autograd or op.name == "to_sparse":
            continue
        for sample in samples(op):
            try:
                run(op, sample, nullcontext())
            except RuntimeError as error:
                assert "eigenvectors" in str(error)
                continue
            # A first run fills caches, and some operations draw random sizes.
            first, second = (run(op, sample, nullcontext()) for _ in range(2))
            if first == second:
                compared += 1
                different |= {op.formatted_name} if run(op, sample, Undoing()) != first else set()
    assert compared > 1000
    assert different == set(DIFFERENT)
