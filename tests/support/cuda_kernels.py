"""Compile the Triton kernels that steps launch for GPUs, without one, and print what they became.

Steps run on CPU tensors with a compiler in place of Triton's launcher, so that the arguments of
every launch give the signature, and a new kernel needs no line here. Triton keeps the compiled
kernels in its cache for the next run. Do not set TRITON_INTERPRET.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.nn import Parameter
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from optprof.optimizers import cuda, fused

TARGETS = (80, 90, 100)
# The count of elements of the largest is that of no other.
SHAPES = [(256, 128), (16, 8, 3, 3), (8, 4, 32), (64, 48), (5000,), (7,), ()]
_LARGEST = 256 * 128
_BYTES = {"v4.b32": 16, "v2.b64": 16, "v8.b32": 32, "v4.b64": 32}


class Compiler:
    """Compiles for some targets what is launched, and keeps one row for each kernel and target."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.targets: Sequence[int] = ()
        self.labels: dict[str, Any] = {}
        self._known: set[str] = set()
        self._moved = (0, 0)

    def launch(self, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Note the bytes that a launch says it reads and writes for an element, then launch."""
        read, written = (
            sum(each.element_size() for each in kwargs.get(name, ()) if each.numel() == _LARGEST)
            for name in ("reads", "writes")
        )
        self._moved = (read + written, written)
        original(*args, **kwargs)

    def __call__(self, kernel: Any, *args: Any, **constants: Any) -> None:
        """Compile a kernel for these arguments."""
        for number in self.targets:
            target = GPUTarget("cuda", number, 32)
            backend = make_backend(target)
            bind = create_function_from_signature(kernel.signature, kernel.params, backend)
            given = {**constants, "debug": False}
            bound, kinds, options = bind(*args, **given)
            options, signature, constexprs, attributes = kernel._pack_args(
                backend, given, bound, kinds, options
            )
            key = repr((kernel.__module__, kernel.__name__, number, kinds, options))
            if key in self._known:
                continue
            self._known.add(key)
            compiled: Any = triton.compile(
                ASTSource(kernel, signature, constexprs, attributes),
                target=target,
                options=options.__dict__,
            )
            loads, stores = (_wide(compiled.asm["ptx"], name) for name in ("ld", "st"))
            self.rows.append(
                {
                    "kernel": _name(kernel),
                    "target": number,
                    **self.labels,
                    "aligned": constants.get("ALIGNED"),
                    "threads": 32 * constants.get("num_warps", 4),
                    "block": constants.get("BLOCK", 0),
                    "read": self._moved[0],
                    "written": self._moved[1],
                    "wide_loads": loads,
                    "wide_stores": stores,
                    **_resources(compiled.asm["cubin"]),
                }
            )


def _name(kernel: Any) -> str:
    return f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"


def _wide(ptx: str, verb: str) -> int:
    """Return the bytes of a thread's loads or stores of 16 bytes and more."""
    kinds = re.findall(rf"\b{verb}\.global\S*\.(v\d\.b\d\d)\b", ptx)
    return sum(_BYTES.get(kind, 0) for kind in kinds)


def _resources(cubin: bytes) -> dict[str, int]:
    """Return the registers of a kernel, and the bytes of a thread that do not fit into them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [tool, "-res-usage", path]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (registers,), (stack,), (local,) = (
        re.findall(rf"{name}:(\d+)", printed) for name in ("REG", "STACK", "LOCAL")
    )
    return {"registers": int(registers), "spilled": int(stack) + int(local)}


def steps(compiler: Compiler, settings: dict[str, Any], modules: Sequence[str]) -> None:
    """Make steps in every setting, dtype and alignment that a kernel may be compiled for.

    sm_90 has all of them, the others the first setting of each optimizer.
    """
    begun: set[type] = set()
    for label, (factory, options) in settings.items():
        if factory.kernels not in modules:
            continue
        dtypes, alignments = [torch.float32], [True]
        if is_first := factory not in begun:
            begun.add(factory)
            dtypes += [torch.bfloat16, torch.float16]
            alignments += [False]
        for dtype in dtypes:
            for aligned in alignments if dtype == torch.float32 else [True]:
                compiler.targets = TARGETS if is_first and aligned else (90,)
                compiler.labels = {"setting": label, "dtype": str(dtype).removeprefix("torch.")}
                params = [Parameter(_tensor(shape, dtype, aligned)) for shape in SHAPES]
                for param in params:
                    param.grad = _tensor(tuple(param.shape), dtype, aligned)
                factory(params, **options, fused=True).step()


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, aligned: bool) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.ones(count + 1, dtype=dtype)[0 if aligned else 1 :][:count].view(shape)


@cache
def _modules() -> list[str]:
    return [module.name for module in iter_modules(cuda.__path__) if module.name != "launching"]


def kernels() -> Iterator[str]:
    """Yield the name of every kernel of the package; a name with _ is a part of kernels."""
    for name in _modules():
        if name.endswith("_kernels"):
            module = import_module(f"{cuda.__name__}.{name}")
            for kernel in vars(module).values():
                if isinstance(kernel, JITFunction) and not kernel.__name__.startswith("_"):
                    yield _name(kernel)


def main() -> None:
    """Print the rows and the names of all kernels as JSON."""
    # One thread computes as fast for tensors this small.
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parents[1] / "optimizers"))
    settings = import_module("conftest").SETTINGS
    fused.KERNELS["cpu"] = "triton"
    compiler = Compiler()
    hosts = [name for name in _modules() if not name.endswith("_kernels")]
    for name in hosts:
        module: Any = import_module(f"{cuda.__name__}.{name}")
        module.launch = partial(compiler.launch, module.launch)
    launcher = lambda kernel, grid: partial(compiler, kernel)  # noqa: ARG005, E731
    with mock.patch.object(JITFunction, "__getitem__", launcher):
        steps(compiler, settings, hosts)
    json.dump({"rows": compiler.rows, "kernels": [*kernels()]}, sys.stdout)


if __name__ == "__main__":
    main()
