"""Fused updates: a tensor's update by a kernel in C++ that goes over its memory as few times as the rule allows, on a CPU.

The source of a kernel stands beside the module whose rule it computes. It is compiled at its first use, for one dtype of parameters and for
the instructions that torch has found on the machine, which takes two or three seconds, and is kept for later processes in
TORCH_EXTENSIONS_DIR, else in ~/.cache/torch_extensions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .compiled import is_plain

if TYPE_CHECKING:
    from .multi_tensor import Bucket, MultiTensorOptimizer, State

_TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half"}
_INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512", "-mfma", "-mf16c"),
}
_FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
# A thread more is worth it for so many elements.
_SHARE = 2**14


def divided(optimizer: MultiTensorOptimizer, bucket: Bucket) -> tuple[Bucket, list[Bucket]]:
    """Those parameters of a bucket that a kernel takes, and each of the others.

    A kernel takes what lies on a CPU in one piece, with a state as it was made for this parameter: one that was turned into another dtype
    since, or is of another shape, goes where torch looks after such things.
    """
    chosen = [_suits(optimizer, *each) for each in zip(bucket.params, bucket.grads, bucket.states, strict=True)]
    others = [bucket.chosen([index]) for index, is_chosen in enumerate(chosen) if not is_chosen]
    return bucket.chosen([index for index, is_chosen in enumerate(chosen) if is_chosen]) if others else bucket, others


def kernel(source: Path, name: str, dtype: torch.dtype) -> Any:
    """A function of a source in C++, for parameters of a dtype; RuntimeError where it cannot be compiled."""
    return getattr(_library(source, _TYPES[dtype], torch.backends.cpu.get_cpu_capability()), name)


def addresses(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Where the memory of each tensor begins; null for none."""
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def threads(param: Tensor) -> int:
    """How many threads are worth it, of those that torch may use."""
    return max(1, min(torch.get_num_threads(), param.numel() // _SHARE))


def _suits(optimizer: MultiTensorOptimizer, param: Tensor, grad: Tensor, state: State) -> bool:
    if not (is_plain(param, grad) and param.is_cpu and param.dtype in _TYPES and grad.dtype == param.dtype and grad.shape == param.shape):
        return False
    whole = all(tensor.is_contiguous() for tensor in (param, grad, *state.values()))
    known = all(tensor.dtype == optimizer._state_dtype(name, param) for name, tensor in state.items())
    return whole and known and optimizer._covers(param, state)


@functools.cache
def _library(source: Path, weight: str, capability: str) -> ctypes.CDLL:
    headers = Path(torch.__file__).parent / "include"
    flags = (*_FLAGS, *_INSTRUCTIONS.get(capability, ()), f"-DWEIGHT={weight}", f"-I{headers}")
    written = "\n".join([source.read_text(encoding="utf-8"), *flags, platform.machine(), torch.__version__])
    name = f"{source.stem}-{hashlib.sha256(written.encode()).hexdigest()[:16]}.so"
    kept = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions") / "optprof" / name
    try:
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                made = Path(folder) / name
                _compile([_compiler(), *flags, str(source), "-o", str(made)], source)
                # At once, whatever another process does here at the same time.
                made.replace(kept)
        return ctypes.CDLL(str(kept))
    except OSError as error:
        raise RuntimeError(f"fused=True cannot keep its kernel in {kept.parent}: {error}; set TORCH_EXTENSIONS_DIR") from error


def _compiler() -> str:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    found = next(filter(None, map(shutil.which, wanted)), None)
    if found is None:
        raise RuntimeError(f"fused=True needs a C++ compiler, and there is no {' or '.join(wanted)}; install one, or leave fused out")
    return found


def _compile(command: list[str], source: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip() or f"status {done.returncode}")
        raise RuntimeError(f"fused=True: {command[0]} cannot compile {source.name}: {said}; set CXX to another, or leave fused out")
