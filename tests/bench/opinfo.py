"""Every operation of torch's test database, traced without data and run on the CPU: storages that
both keep.

    python tests/bench/opinfo.py [NAME ...] [--samples 1000000]

A sample passes where what its outputs, autograd and its gradients hold has the same bytes in both,
storage by storage, numbers alone aside. What may differ is named below with the reason, as a rule
a kernel that CUDA has and a CPU has not. The run fails for an operation that is not, and says when
one that is passes.
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
        "its inputs see a part of a larger storage, which their twins have not"
    ),
    "linalg_lstsq": "its solution is a view of a padded copy, which meta tensors cut",
    "linalg_lstsq_grad_oriented": "its solution is a view of a padded copy, which meta tensors cut",
    "masked_prod": "without a dispatch mode autograd asks whether an element is zero",
    "nn_functional_ctc_loss": "on CUDA the sums of the paths have other sizes (LossCTC.cu)",
    "nn_functional_embedding_bag": "on CUDA the bag of each index is always kept (EmbeddingBag.cu)",
    "nn_functional_scaled_dot_product_attention": "CUDA takes another kernel than the CPU",
    "unique": "on CUDA values and counts keep the memory for all, and along an axis none more",
    "unique_consecutive": "on CUDA what is found along an axis keeps no more memory than it needs",
}
# What a CPU cannot run, or differentiate by ones.
NOT_RUN = ("to_sparse", "linalg_eig", "jiterator_")
PARTS = ("outputs", "saved", "gradients")
# Of numbers alone the CPU's kernels make more.
NUMBER = 8

Held = tuple[list[int], list[int], list[int]]


def samples(op: Any, most: int) -> Iterator[Any]:
    """The inputs of an operation that torch's own tests have, without their call stacks."""
    make = partial(
        op.sample_inputs_func, op, "cpu", torch.float32, requires_grad=op.supports_autograd
    )
    torch.manual_seed(0)
    yield from islice(make(), most)


def held(run: Callable[[], Any], leaves: list[Tensor]) -> Held:
    """Bytes of the storages that a call's outputs keep, of those that autograd keeps, and of the
    gradients.
    """
    given = {storage_of(leaf) for leaf in leaves}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.update(sizes([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = [leaf for leaf in tree_leaves(run()) if isinstance(leaf, Tensor)]
    outputs = {key: size for key, size in sizes(found).items() if key not in given}
    kept = {key: size for key, size in saved.items() if key not in given and key not in outputs}
    ends = [output for output in found if output.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    gradients: list[Tensor] = []
    if ends and wanted:
        seeds = [torch.ones_like(end) for end in ends]
        grads = torch.autograd.grad(ends, wanted, seeds, allow_unused=True)
        own = {storage_of(seed) for seed in seeds}
        gradients = [
            grad for grad in grads if grad is not None and storage_of(grad) not in own | given
        ]
    return large(outputs), large(kept), large(sizes(gradients))


def sizes(tensors: list[Tensor]) -> dict[int, int]:
    strided = [tensor for tensor in tensors if tensor.layout is torch.strided]
    return {storage_of(tensor): tensor.untyped_storage().nbytes() for tensor in strided}


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def large(found: dict[int, int]) -> list[int]:
    return sorted(size for size in found.values() if size > NUMBER)


def run_with(op: Any, given: Any) -> Held:
    leaves = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    first, args, kwargs = given
    return held(lambda: op(first, *args, **kwargs), leaves)


def real(op: Any, sample: Any) -> Held:
    torch.manual_seed(0)
    return run_with(op, (sample.input, sample.args, sample.kwargs))


def traced(op: Any, sample: Any) -> Held:
    """The same of a trace."""
    recorder = Recorder(workspaces=())
    given = (sample.input, sample.args, sample.kwargs)
    with recorder.phase("build"):
        twins = tree_map(
            lambda leaf: without_data(leaf) if isinstance(leaf, Tensor) else leaf, given
        )
    with recorder.phase("forward"):
        return run_with(op, twins)


def without_data(tensor: Tensor) -> Tensor:
    """A tensor like another on the recorded device, whose values a trace knows where it would in
    training.
    """
    with torch.no_grad():
        twin = with_value(tensor.detach())
        if tensor.layout is torch.strided and twin.stride() != tensor.stride():
            twin = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
        return twin.requires_grad_(tensor.requires_grad)


def compared(op: Any, most: int) -> tuple[Counter[str], list[str]]:
    """Counts of comparisons and refusals, and in words what differs."""
    counts: Counter[str] = Counter()
    found: list[str] = []
    for place, sample in enumerate(samples(op, most)):
        try:
            wanted = real(op, sample)
        except Exception as error:
            counts["not run"] += 1
            found.append(
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
            found.append(
                f"trace {place}: {type(error).__name__}: {' '.join(str(error).split())[:90]}"
            )
            continue
        for part, one, other in zip(PARTS, wanted, counted, strict=True):
            counts["compared"] += 1
            if one != other:
                counts["different"] += 1
                found.append(f"{part} {place}: CPU {one[:6]}, trace {other[:6]}")
    return counts, found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--samples", type=int, default=10**6)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    start, total = time.perf_counter(), Counter[str]()
    unnamed, passed, refused = list[str](), list[str](), list[str]()
    for op in op_db:
        name = op.formatted_name
        if (options.names and name not in options.names) or torch.float32 not in op.dtypes:
            continue
        counts, found = compared(op, options.samples)
        total.update(counts, operations=1)
        if found:
            print(name, DIFFERENT.get(name, ""), dict(counts), *found[:3], sep="\n    ", flush=True)
        if counts["refused"]:
            refused.append(f"{name} {counts['refused']}")
        if counts["different"] + counts["failed"] and name not in DIFFERENT:
            unnamed.append(name)
        if counts["not run"] and not name.startswith(NOT_RUN):
            unnamed.append(name)
        if name in DIFFERENT and not counts["different"]:
            passed.append(name)
    print(dict(total), f"{time.perf_counter() - start:.0f} s")
    print(f"refused, since sizes depend on values: {', '.join(refused) or 'none'}")
    print(f"different and not named: {', '.join(unnamed) or 'none'}")
    if passed:
        print(f"named and the same: {', '.join(passed)}; take them out of DIFFERENT")
    return bool(unnamed)


if __name__ == "__main__":
    sys.exit(main())
