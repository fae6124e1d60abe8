"""Footprint: bytes that are not tensors of the user: context, workspaces, temporaries."""

import subprocess
from collections.abc import Callable
from threading import Thread
from typing import Any

import torch
from optprof.profiler.machine.environment import environment
from place import PLACE
from torch.nn import functional

MIB = 1 << 20


def device(say: Any) -> None:
    """Note versions and torch's properties of the device."""
    say("torch", {"version": torch.__version__, "cuda": torch.version.cuda})
    say.attempt("environment", environment, 0)
    say.attempt("cudnn", torch.backends.cudnn.version)
    say.attempt("properties", _properties)
    say.attempt("capability", lambda: list(torch.cuda.get_device_capability()))
    say.attempt("config", torch.__config__.show)
    say.attempt("nvidia-smi", _nvidia_smi)


def _properties() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    names = [name for name in dir(properties) if not name.startswith("_")]
    return {name: str(getattr(properties, name)) for name in names}


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "-q"]
    return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout[:12_000]


def context(say: Any) -> None:
    """Note the driver's bytes outside torch's pool while more and more of CUDA is loaded."""
    say.attempt("used before", _used_by_all)
    torch.cuda.init()
    say.attempt("context", _outside)
    x = torch.ones(256, 256, device=PLACE.device, requires_grad=True)
    say.attempt("first kernel", _outside)
    (x @ x).sum().backward()
    say.attempt("matrix product", _outside)
    q = torch.ones(1, 2, 64, 64, device=PLACE.device, requires_grad=True)
    functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    say.attempt("attention", _outside)
    image = torch.ones(1, 3, 32, 32, device=PLACE.device)
    torch.nn.Conv2d(3, 8, 3).to(PLACE.device)(image).sum().backward()
    say.attempt("convolution", _outside)
    half = torch.ones(256, 256, device=PLACE.device, dtype=torch.bfloat16)
    torch.mm(half, half)
    say.attempt("half precision", _outside)


def _used_by_all() -> int:
    """Return the used bytes of the device by NVML, without a CUDA context."""
    import pynvml  # pyright: ignore[reportMissingImports]

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)


def _outside() -> dict[str, int]:
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    return {"free": free, "total": total, "outside": total - free - reserved}


def workspaces(say: Any) -> None:
    """Note the bytes that first products leave allocated, on this and another thread."""
    a, b, out = (torch.ones(512, 512, device=PLACE.device) for _ in range(3))
    half = a.to(torch.bfloat16)
    bias = torch.ones(512, device=PLACE.device)
    products: dict[str, Callable[[], Any]] = {
        "fp32": lambda: torch.mm(a, b, out=out),
        "fp32 again": lambda: torch.mm(a, b, out=out),
        "bf16": lambda: torch.mm(half, half),
        "with bias": lambda: torch.addmm(bias, a, b),
        "batched": lambda: torch.bmm(a[None], b[None]),
        "another thread": lambda: _in_thread(lambda: torch.mm(a, b, out=out)),
    }
    for name, product in products.items():
        say.attempt(name, peak, product)
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        say.attempt("cleared", peak, clear)


def _in_thread(call: Callable[[], Any]) -> None:
    thread = Thread(target=call)
    thread.start()
    thread.join()


def peak(run: Callable[[], Any]) -> dict[str, int]:
    """Return the bytes of a call's peak, of its result, and those that it leaves allocated."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    highest, now = torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated()
    del result
    after = torch.cuda.memory_allocated()
    return {"peak": highest, "result": now - after, "kept": after - before}


def reductions(say: Any) -> None:
    """Note the staging of sums over rows and of maxima by (reduced rows, outputs)."""
    rows = (512, 1024, 2048, 4096, 8192, 10_000, 16_384)
    outputs = (512, 768, 1024, 1280, 1600, 2560, 4096, 6400, 10_000, 11_008)
    for count in rows if PLACE.device == "cuda" else rows[:1]:
        for width in outputs:
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.ones(count, width, device=PLACE.device, dtype=dtype)
                name = f"sum {count}x{width} {str(dtype).removeprefix('torch.')}"
                say.attempt(name, peak, lambda x=x: x.sum(0))
    for count, width in ((512, 10_000), (1024, 10_000), (2048, 10_000), (64, 50_257)):
        x = torch.ones(count, width, device=PLACE.device)
        say.attempt(f"max {count}x{width}", peak, lambda x=x: x.max(0))
        say.attempt(f"rows {count}x{width}", peak, lambda x=x: x.sum(1))
        say.attempt(f"norm {count}x{width}", peak, lambda x=x: x.norm())
        say.attempt(f"all {count}x{width}", peak, lambda x=x: x.sum())


def temporaries(say: Any) -> None:
    """Note the peaks of backward passes and kernels with rules in the simulator."""
    counts = (512, 1024, 3072, 4096, 8192) if PLACE.device == "cuda" else (64,)
    for count in counts:
        for width in (768, 1600):
            say.attempt(f"embedding {count}x{width}", _embedding, count, width)
            say.attempt(f"layer_norm {count}x{width}", _norm, functional.layer_norm, count, width)
            say.attempt(f"rms_norm {count}x{width}", _norm, functional.rms_norm, count, width)
        say.attempt(f"cross_entropy {count}", _cross_entropy, count)
        x = torch.rand(count, 1024, device=PLACE.device)
        index = torch.randint(count, (count,), device=PLACE.device)
        values = x.clone()
        calls: dict[str, Callable[[], Any]] = {
            "sort": lambda x=x: x.sort(dim=-1),
            "sort flat": lambda x=x: x.flatten().sort(),
            "topk": lambda x=x: x.topk(8),
            "cumsum": lambda x=x: x.flatten().cumsum(0),
            "index_put": lambda x=x, i=index, y=values: x.index_put_((i,), y, accumulate=True),
            "nonzero": lambda x=x: x.nonzero(),
            "unique": lambda i=index: i.unique(),
        }
        for name, call in calls.items():
            say.attempt(f"{name} {count}x1024", peak, call)


def _embedding(count: int, width: int) -> dict[str, int]:
    table = torch.nn.Embedding(50_257, width).to(PLACE.device)
    rows = table(torch.randint(50_257, (count,), device=PLACE.device))
    return _backward(rows)


def _norm(norm: Any, count: int, width: int) -> dict[str, int]:
    x = torch.ones(count, width, device=PLACE.device, requires_grad=True)
    weight = torch.ones(width, device=PLACE.device, requires_grad=True)
    return _backward(norm(x, (width,), weight))


def _cross_entropy(count: int) -> dict[str, int]:
    logits = torch.zeros(count, 50_257, device=PLACE.device, requires_grad=True)
    labels = torch.zeros(count, dtype=torch.long, device=PLACE.device)
    return _backward(functional.cross_entropy(logits, labels))


def _backward(result: torch.Tensor) -> dict[str, int]:
    """Return the peak of the backward pass alone; it leaves the gradients of the leaves."""
    gradient = torch.ones_like(result)
    return peak(lambda: result.backward(gradient))
