"""In-place writes of autograd, which it replaces by copies under dispatch modes or on meta tensors.

A tensor that may be a subclass must not lose its type, so autograd makes a new tensor instead of
writing in place as on a GPU (isTensorSubclassLike in ATen/TensorSubclassLikeUtils.h). It does so
for the sum of gradients of a tensor with several consumers, in the backward pass of gather, index,
max and some others, and in a linear layer over a non-contiguous tensor. These functions detect such
a copy, so that a recorder can write in place instead.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.autograd
from torch.utils._python_dispatch import TorchDispatchMode

from .layouts import data_of

aten = torch.ops.aten
# backward() and grad() look the engine up in this module; the name is not exported.
_autograd: Any = torch.autograd

_ADD = aten.add.Tensor
_ZEROS = frozenset(map(id, (aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default)))
# Writes of a graph node into zeros that it makes: value_selecting_reduction_backward in
# ATen/native/ReduceOps.cpp, cummaxmin_backward, gather_backward, index_select_backward,
# take_backward, index_backward, masked_select_backward and trace_backward.
_INTO_ZEROS = {
    aten.scatter.src: aten.scatter_.src,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.index_add.default: aten.index_add_.default,
    aten.index_put.default: aten.index_put_.default,
    aten.index_fill.int_Tensor: aten.index_fill_.int_Tensor,
    aten.masked_scatter.default: aten.masked_scatter_.default,
    aten.put.default: aten.put_.default,
}
# scatter_reduce_backward and index_reduce_backward add to zeros by a copy.
_COPYING = ("ScatterReduceBackward0", "IndexReduceBackward0")
# Writes of a node into its intermediate results, by the node's name. The first is in
# ATen/native/Loss.cpp, the others are in torch/csrc/autograd/FunctionsManual.cpp.
_INTO_TEMPORARIES: Mapping[str, Mapping[Any, Any]] = {
    "BinaryCrossEntropyWithLogitsBackward0": {
        aten.sub.Tensor: aten.sub_.Tensor,
        aten.mul.Tensor: aten.mul_.Tensor,
        aten.div.Scalar: aten.div_.Scalar,
    },
    "ClampBackward0": {aten.logical_and.default: aten.logical_and_.default},
    "ClampBackward1": {aten.logical_and.default: aten.logical_and_.default},
    "Atan2Backward0": {aten.masked_fill.Scalar: aten.masked_fill_.Scalar},
}
# A linear layer adds its bias in place to a product of three or more dimensions that it cannot
# flatten.
_LINEAR = partial(aten.linear.default._op_dk, torch._C.DispatchKey.CompositeImplicitAutograd)
# accumulateGrad in torch/csrc/autograd/functions/accumulate_grad.h copies a parameter's first
# sparse gradient if something else refers to its parts, as a dispatch mode does; else it keeps
# them.
_COPY = aten.clone.default
_CANDIDATES = frozenset(
    map(
        id,
        (
            _ADD,
            _COPY,
            *_INTO_ZEROS,
            *(func for table in _INTO_TEMPORARIES.values() for func in table),
        ),
    )
)


class InPlace:
    """Follows a backward pass and detects operations that autograd would have run in place."""

    def __init__(self) -> None:
        # The sequence number of the last node that ran; until the next one, the engine sums what
        # the node returned.
        self._last_node: int | None = None
        self._zeros: weakref.ref[torch.Tensor] | None = None

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow each backward pass inside; linear layers of meta tensors add biases in place."""
        _engine_references()
        library = torch.library.Library("aten", "IMPL")
        library.impl("linear", _linear, "AutogradMeta")
        begin = _autograd._engine_run_backward

        def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            for node in _adding_nodes(outputs):
                node.register_hook(partial(self._end, node._sequence_nr()))
            return begin(outputs, *args, **kwargs)

        _autograd._engine_run_backward = run
        try:
            yield
        finally:
            _autograd._engine_run_backward = begin
            library._destroy()

    def instead_of(self, func: Any, args: Any) -> tuple[Any, Any] | None:
        """Return the in-place operation for `func` and its arguments, of which it writes the first.

        None if autograd makes a new tensor on a GPU too.
        """
        if id(func) not in _CANDIDATES or torch.is_grad_enabled():
            return None
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        if func is _ADD and node._sequence_nr() == self._last_node:
            return self._accumulated(args)
        name = node.name()
        if func is _COPY:
            is_kept = (
                "AccumulateGrad" in name
                and args[0].is_sparse
                and all(part.is_contiguous() for part in data_of(args[0]))
            )
            return (aten.detach.default, args[:1]) if is_kept else None
        if func in _INTO_ZEROS and self._zeros is not None and self._zeros() is args[0]:
            # Autograd passes its zeros by value: only Python's references show that no other use.
            owned = (
                _references(args[0]).python == _engine_references().python and name not in _COPYING
            )
            return (_INTO_ZEROS[func], args) if owned else None
        in_place = _INTO_TEMPORARIES.get(name, {}).get(func)
        if in_place is None:
            return None
        # The result of an earlier in-place write of this node shares its operand's storage.
        owned = _references(args[0])._replace(storage=0) == _engine_references()._replace(storage=0)
        return (in_place, args) if owned else None

    def note(self, func: Any, result: Any) -> None:
        """Remember the last zeros that an operation has made."""
        if id(func) in _ZEROS:
            self._zeros = weakref.ref(result)

    def _accumulated(self, args: Any) -> tuple[Any, Any] | None:
        """Return the in-place sum of two gradients of one tensor if nothing else uses the older.

        As `accumulate` in torch/csrc/autograd/input_buffer.cpp decides.
        """
        same = (
            args[0].dtype == args[1].dtype
            and args[0].shape == args[1].shape
            and args[0].layout is args[1].layout is torch.strided
        )
        # The operand gets no local name, which would be one more reference.
        if same and _references(args[0]) == _engine_references() and is_dense(args[0]):
            return aten.add_.Tensor, args
        return None

    def _end(self, number: int, *_: object) -> None:
        """Note that a node has run."""
        self._last_node = number


def _linear(
    tensor: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Run linear of ATen/native/Linear.cpp, adding the bias in place as on a GPU."""
    if bias is None or tensor.dim() < 3 or tensor.is_contiguous():
        return _LINEAR(tensor, weight, bias)
    return torch.matmul(tensor, weight.t()).add_(bias)


def _adding_nodes(outputs: Iterable[Any]) -> Iterator[Any]:
    """Yield the nodes of the graph whose gradients are added to those of other nodes."""
    nodes = [getattr(output, "node", None) or output.grad_fn for output in outputs]
    edges: dict[Any, Any] = {}
    while nodes:
        node = nodes.pop()
        if node is not None and node not in edges:
            edges[node] = node.next_functions
            nodes += [following for following, _ in edges[node]]
    gradients = Counter(edge for following in edges.values() for edge in following)
    for node, following in edges.items():
        if any(gradients[edge] > 1 for edge in following):
            yield node


class _References(NamedTuple):
    """Counts of references to a tensor and its storage from C++, and to the tensor from Python."""

    tensor: int
    storage: int
    python: int


def _references(tensor: Any) -> _References:
    storage = tensor.untyped_storage()
    return _References(
        tensor._use_count(), torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(tensor)
    )


@cache
def _engine_references() -> _References:
    """Return the references that a dispatch mode sees of a gradient that only the engine holds.

    The mode's own references depend on the version of torch, so a small graph is run to count them.
    """
    probe = _Probe()
    x = torch.ones(2, requires_grad=True).exp()
    loss = (x.exp() + x.exp()).sum()
    with probe:
        loss.backward()
    return probe.references


class _Probe(TorchDispatchMode):
    """Counts the references of the first operand of the only sum in a backward pass."""

    references: _References

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing compiled runs inside, and torch's guard would double the time of an operation.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is _ADD:
            self.references = _references(args[0])
        return func(*args, **(kwargs or {}))


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether the elements fill a part of the storage without gaps or repetitions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
