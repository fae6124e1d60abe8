"""Trace every operation of torch's test database, and compare its storages with the CPU's.

    python tests/bench/opinfo.py [NAME ...] [--samples 1000000]

A sample passes if the storages of its outputs, of autograd and of its gradients have the same bytes
in both, except single numbers. DIFFERENT lists the operations that may differ with the reason,
usually a kernel that only CUDA has. The run fails for an unlisted operation, and names listed ones
that pass.
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map

from optprof.profiler.tracing.trace import Recorder
from optprof.profiler.tracing.untraceable import UntraceableError
from optprof.profiler.tracing.values import with_value

DIFFERENT = {
    "as_strided_partial_views": (
        "its inputs are parts of a larger storage, and those of the trace are not"
    ),
    "linalg_lstsq": "its solution is a view of a padded copy, which meta tensors cut",
    "linalg_lstsq_grad_oriented": "its solution is a view of a padded copy, which meta tensors cut",
    "masked_prod": "without a dispatch mode autograd tests for a zero element",
    "nn_functional_ctc_loss": "on CUDA the sums of the paths have other sizes (LossCTC.cu)",
    "nn_functional_embedding_bag": "on CUDA the bag of each index is always kept (EmbeddingBag.cu)",
    "nn_functional_scaled_dot_product_attention": "CUDA takes another kernel than the CPU",
    "unique": "on CUDA values and counts keep memory for all elements, except along an axis",
    "unique_consecutive": "on CUDA a result along an axis keeps only the memory that it needs",
}
# Operations that a CPU cannot run, or whose outputs have no gradient for ones.
NOT_RUN = ("to_sparse", "linalg_eig", "jiterator_")
PARTS = ("outputs", "saved", "gradients")
# The CPU's kernels make more single numbers, of at most so many bytes.
NUMBER = 8

StorageBytes = tuple[list[int], list[int], list[int]]


def samples(op: Any, most: int) -> Iterator[Any]:
    """Yield the operation's inputs in torch's own tests, without their call stacks."""
    make = partial(
        op.sample_inputs_func, op, "cpu", torch.float32, requires_grad=op.supports_autograd
    )
    torch.manual_seed(0)
    yield from islice(make(), most)


def bytes_kept(run: Callable[[], Any], leaves: list[Tensor]) -> StorageBytes:
    """Return the bytes of the storages that the outputs, autograd and the gradients keep."""
    inputs = {storage_of(leaf) for leaf in leaves}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.update(sizes([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = [leaf for leaf in tree_leaves(run()) if isinstance(leaf, Tensor)]
    outputs = {key: size for key, size in sizes(results).items() if key not in inputs}
    by_autograd = {
        key: size for key, size in saved.items() if key not in inputs and key not in outputs
    }
    ends = [output for output in results if output.requires_grad]
    differentiated = [leaf for leaf in leaves if leaf.requires_grad]
    gradients: list[Tensor] = []
    if ends and differentiated:
        seeds = [torch.ones_like(end) for end in ends]
        grads = torch.autograd.grad(ends, differentiated, seeds, allow_unused=True)
        own = {storage_of(seed) for seed in seeds}
        gradients = [
            grad for grad in grads if grad is not None and storage_of(grad) not in own | inputs
        ]
    return large(outputs), large(by_autograd), large(sizes(gradients))


def sizes(tensors: list[Tensor]) -> dict[int, int]:
    strided = [tensor for tensor in tensors if tensor.layout is torch.strided]
    return {storage_of(tensor): tensor.untyped_storage().nbytes() for tensor in strided}


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def large(by_storage: dict[int, int]) -> list[int]:
    return sorted(size for size in by_storage.values() if size > NUMBER)


def run_with(op: Any, arguments: Any) -> StorageBytes:
    leaves = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    first, args, kwargs = arguments
    return bytes_kept(lambda: op(first, *args, **kwargs), leaves)


def real(op: Any, sample: Any) -> StorageBytes:
    torch.manual_seed(0)
    return run_with(op, (sample.input, sample.args, sample.kwargs))


def traced(op: Any, sample: Any) -> StorageBytes:
    """Return the bytes that a trace of the operation keeps."""
    recorder = Recorder(workspaces=())
    arguments = (sample.input, sample.args, sample.kwargs)
    with recorder.phase("build"):
        twins = tree_map(
            lambda leaf: without_data(leaf) if isinstance(leaf, Tensor) else leaf, arguments
        )
    with recorder.phase("forward"):
        return run_with(op, twins)


def without_data(tensor: Tensor) -> Tensor:
    """Return the tensor on the recorded device, with values if a trace would know them."""
    with torch.no_grad():
        twin = with_value(tensor.detach())
        if tensor.layout is torch.strided and twin.stride() != tensor.stride():
            twin = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
        return twin.requires_grad_(tensor.requires_grad)


def compared(op: Any, most: int) -> tuple[Counter[str], list[str]]:
    """Count comparisons and refusals, and describe each difference."""
    counts: Counter[str] = Counter()
    differences: list[str] = []
    for place, sample in enumerate(samples(op, most)):
        try:
            expected = real(op, sample)
        except Exception as error:
            counts["not run"] += 1
            differences.append(
                f"run {place}: {type(error).__name__}: {' '.join(str(error).split())[:90]}"
            )
            continue
        try:
            counted = traced(op, sample)
        except UntraceableError:
            counts["refused"] += 1
            continue
        except Exception as error:
            counts["failed"] += 1
            differences.append(
                f"trace {place}: {type(error).__name__}: {' '.join(str(error).split())[:90]}"
            )
            continue
        for part, one, other in zip(PARTS, expected, counted, strict=True):
            counts["compared"] += 1
            if one != other:
                counts["different"] += 1
                differences.append(f"{part} {place}: CPU {one[:6]}, trace {other[:6]}")
    return counts, differences


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--samples", type=int, default=10**6)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    start, total = time.perf_counter(), Counter[str]()
    unlisted, passed, refused = list[str](), list[str](), list[str]()
    for op in op_db:
        name = op.formatted_name
        if (options.names and name not in options.names) or torch.float32 not in op.dtypes:
            continue
        counts, differences = compared(op, options.samples)
        total.update(counts, operations=1)
        if differences:
            print(
                name,
                DIFFERENT.get(name, ""),
                dict(counts),
                *differences[:3],
                sep="\n    ",
                flush=True,
            )
        if counts["refused"]:
            refused.append(f"{name} {counts['refused']}")
        if counts["different"] + counts["failed"] and name not in DIFFERENT:
            unlisted.append(name)
        if counts["not run"] and not name.startswith(NOT_RUN):
            unlisted.append(name)
        if name in DIFFERENT and not counts["different"]:
            passed.append(name)
    print(dict(total), f"{time.perf_counter() - start:.0f} s")
    print(f"refused, since sizes depend on values: {', '.join(refused) or 'none'}")
    print(f"different and not listed: {', '.join(unlisted) or 'none'}")
    if passed:
        print(f"listed and the same: {', '.join(passed)}; take them out of DIFFERENT")
    return bool(unlisted)


if __name__ == "__main__":
    sys.exit(main())
