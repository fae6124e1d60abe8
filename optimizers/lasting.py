"""Lasting tensors: what a step makes in inference mode and later steps outside of it change."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def lasting(changed: Iterable[Tensor] = ()) -> Iterator[None]:
    """Make tensors that can be changed in place for ever; inference mode makes others by itself.

    Where one of those that are `changed` inside is of inference mode, that mode stays on.
    """
    in_inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    if not in_inference or any(tensor.is_inference() for tensor in changed):
        yield
        return
    # Out of inference mode torch would record gradients.
    with torch.inference_mode(False), torch.no_grad():
        yield
